//! (to be written)
pub mod checkout;
