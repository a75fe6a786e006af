//! What people and their programs do: `ctr`, nerdctl, agents.

pub(crate) mod agents;
pub(crate) mod nerdctl;
pub(crate) mod user;

integration::room![
    user,
    nerdctl,
    nerdctl::hooks,
    nerdctl::outside,
    nerdctl::flags,
    agents
];
