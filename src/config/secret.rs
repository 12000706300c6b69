//! (to be written)
#[derive(Clone)]
pub struct Secret(String);
impl Secret {
    pub fn reveal(&self) -> &str {
        &self.0
    }
}
