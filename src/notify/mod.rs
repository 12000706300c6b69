//! Messages to people: written with what they tell about, sent afterwards, retried, never lost.
