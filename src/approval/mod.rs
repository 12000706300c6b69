//! Approvals: people say yes or no, by mail, webhook or command line, and it counts for exactly what they were shown.
