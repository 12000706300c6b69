//! What `mainstay.yml` says that matters for approvals, as it is in force.

use crate::config::daemon::notify::Inbound;
use crate::config::daemon::{Daemon, People};
use crate::model::approval::{ApprovalPolicy, ApprovalRequest};
use crate::model::{EnvironmentName, PersonName};
use std::collections::BTreeMap;

/// The part of the configuration that approvals go by; replaced as a whole on reload.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rules {
    /// Who there is.
    pub people: People,
    /// The policies of environments that have one.
    pub policies: BTreeMap<EnvironmentName, ApprovalPolicy>,
    /// Mail can be sent.
    pub mail: bool,
    /// Systems that are told, and what they may send back.
    pub webhooks: BTreeMap<String, Option<Inbound>>,
    /// How people reach the daemon, without a slash at the end.
    pub public_url: String,
}

impl Rules {
    /// From the whole configuration.
    pub fn of(config: &Daemon) -> Rules {
        let policies = config.environments.iter();
        let webhooks = config.notify.webhooks.iter();
        Rules {
            people: config.people.clone(),
            policies: policies.filter_map(|(name, env)| Some((name.clone(), env.approval.clone()?))).collect(),
            mail: config.notify.smtp.is_some(),
            webhooks: webhooks.map(|(name, hook)| (name.clone(), hook.inbound.clone())).collect(),
            public_url: config.server.public_url.clone(),
        }
    }

    /// The policy that counts: the environment's own as it is now, or the one that was asked with.
    pub fn policy<'r>(&'r self, request: &'r ApprovalRequest) -> &'r ApprovalPolicy {
        let own = request.environment.as_ref().and_then(|environment| self.policies.get(environment));
        own.unwrap_or(&request.policy)
    }

    /// Whether that person gets mail.
    pub(super) fn mails(&self, person: &PersonName) -> bool {
        self.mail && self.people.users.get(person).is_some_and(|person| person.mail.is_some())
    }
}
