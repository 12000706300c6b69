//! Reading for those who ask: deploys and steps that wait.

use super::{ApprovalError, Approvals};
use crate::config::daemon::People;
use crate::model::ApprovalId;

impl Approvals {
    /// The request of that key, if it was made.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn find(&self, key: &str) -> Result<Option<ApprovalId>, ApprovalError> {
        Ok(self.inner.store.approval_of_key(key.to_owned()).await?)
    }

    /// Who there is, as the configuration in force has it.
    pub fn people(&self) -> People {
        self.rules().people.clone()
    }
}
