//! What only an engine with containers promises.
