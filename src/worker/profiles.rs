//! The accounts that calls are made with: which one the jobs of a queue get, and the API of each.
//!
//! A profile is a name, a base URL and a key. Several may have the same key: gates and paces go by
//! the key, breakers by the profile.

use std::collections::BTreeMap;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

use crate::claude::Claude;
use crate::store::DEFAULT_PROFILE;

/// One of the [`Profiles`] that gave it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProfileId(usize);

impl ProfileId {
    /// The profile of `[api]`.
    pub const DEFAULT: Self = Self(0);

    /// How claims name it.
    pub fn word(self) -> String {
        if self == Self::DEFAULT { DEFAULT_PROFILE.to_owned() } else { self.0.to_string() }
    }
}

/// Something of each profile, and which profile a queue has. There is always that of `[api]`.
#[derive(Debug, Clone)]
pub struct Profiles<T> {
    all: Vec<T>,
    queues: BTreeMap<String, ProfileId>,
}

/// A profile as the mill uses it.
pub struct Profile {
    /// `api.profile`, or its name under `[profiles]`.
    pub name: String,
    /// Its API, with its key.
    pub claude: Arc<dyn Claude>,
    /// What tells its key from the same key at another base URL: empty at that of `[api]`.
    pub place: String,
}

impl Profile {
    /// Names its key, without telling it, as gates are named.
    pub fn key(&self) -> String {
        format!("{}{}", self.claude.fingerprint(), self.place)
    }
}

impl<T> Profiles<T> {
    /// All queues have this one.
    pub fn new(default: T) -> Self {
        Self { all: vec![default], queues: BTreeMap::new() }
    }

    /// Adds one.
    pub fn add(&mut self, profile: T) -> ProfileId {
        self.all.push(profile);
        ProfileId(self.all.len() - 1)
    }

    /// Says which one a queue has.
    pub fn choose(&mut self, queue: &str, profile: ProfileId) {
        self.queues.insert(queue.to_owned(), profile);
    }

    /// Which one a queue has.
    pub fn of(&self, queue: &str) -> ProfileId {
        self.queues.get(queue).copied().unwrap_or(ProfileId::DEFAULT)
    }

    /// The queues for which one was chosen.
    pub const fn chosen(&self) -> &BTreeMap<String, ProfileId> {
        &self.queues
    }

    /// With which profile queues are claimed.
    pub fn words(&self) -> BTreeMap<String, String> {
        self.queues.iter().map(|(queue, id)| (queue.clone(), id.word())).collect()
    }

    /// Each with its id.
    pub fn iter(&self) -> impl Iterator<Item = (ProfileId, &T)> {
        self.all.iter().enumerate().map(|(at, profile)| (ProfileId(at), profile))
    }

    /// Each of them, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (ProfileId, &mut T)> {
        self.all.iter_mut().enumerate().map(|(at, profile)| (ProfileId(at), profile))
    }

    /// Something else of each.
    pub fn map<U>(&self, of: impl FnMut(&T) -> U) -> Profiles<U> {
        Profiles { all: self.all.iter().map(of).collect(), queues: self.queues.clone() }
    }

    /// Those that jobs of these queues are asked with; of all queues where none is named.
    pub fn used(&self, queues: &[String]) -> Vec<ProfileId> {
        let mut used: Vec<ProfileId> = if queues.is_empty() {
            self.queues.values().copied().chain([ProfileId::DEFAULT]).collect()
        } else {
            queues.iter().map(|queue| self.of(queue)).collect()
        };
        used.sort();
        used.dedup();
        used
    }
}

impl<T> Index<ProfileId> for Profiles<T> {
    type Output = T;

    fn index(&self, id: ProfileId) -> &T {
        &self.all[id.0]
    }
}

impl<T> IndexMut<ProfileId> for Profiles<T> {
    fn index_mut(&mut self, id: ProfileId) -> &mut T {
        &mut self.all[id.0]
    }
}
