//! Stores of containers, and lists sorted by age.

use super::{Container, Timestamp};
use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

/// A store of containers by id.
pub trait ContainerStore: Send + Sync {
    /// Inserts a container, in place of one that has this id.
    fn add(&self, id: &str, container: Container);
    /// The container of this id.
    fn get(&self, id: &str) -> Option<Container>;
    /// Forgets a container; an unknown id is fine.
    fn delete(&self, id: &str);
    /// All containers, the newest first.
    fn list(&self) -> Vec<Container>;
    /// How many there are.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Some container that the filter takes; without one, any.
    fn find(&self, filter: Option<&dyn Fn(&Container) -> bool>) -> Option<Container>;
    /// Applies a function to all containers at the same time and waits for all; without one nothing
    /// happens. The function may use the store.
    fn for_each_concurrent(&self, apply: Option<&(dyn Fn(&Container) + Sync)>);
}

/// A store in memory.
#[derive(Debug, Default)]
pub struct MemoryStore(RwLock<HashMap<String, Container>>);

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<String, Container>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<String, Container>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ContainerStore for MemoryStore {
    fn add(&self, id: &str, container: Container) {
        self.write().insert(id.to_owned(), container);
    }

    fn get(&self, id: &str) -> Option<Container> {
        self.read().get(id).cloned()
    }

    fn delete(&self, id: &str) {
        self.write().remove(id);
    }

    fn list(&self) -> Vec<Container> {
        let mut history: History = self.read().values().cloned().collect();
        history.sort();
        history.into_iter().collect()
    }

    fn len(&self) -> usize {
        self.read().len()
    }

    fn find(&self, filter: Option<&dyn Fn(&Container) -> bool>) -> Option<Container> {
        // Callbacks run without the lock.
        let all: Vec<Container> = self.read().values().cloned().collect();
        all.into_iter().find(|c| filter.is_none_or(|filter| filter(c)))
    }

    fn for_each_concurrent(&self, apply: Option<&(dyn Fn(&Container) + Sync)>) {
        let Some(apply) = apply else { return };
        let all: Vec<Container> = self.read().values().cloned().collect();
        std::thread::scope(|scope| {
            for container in &all {
                scope.spawn(move || apply(container));
            }
        });
    }
}

/// A list of containers that sorts the newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History(Vec<Container>);

impl History {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the `i`th was created after the `j`th; false if there are not that many.
    pub fn newer(&self, i: usize, j: usize) -> bool {
        match (self.0.get(i), self.0.get(j)) {
            (Some(a), Some(b)) => b.created_at() < a.created_at(),
            _ => false,
        }
    }

    /// Swaps two; nothing happens if there are not that many.
    pub fn swap(&mut self, i: usize, j: usize) {
        if i < self.len() && j < self.len() {
            self.0.swap(i, j);
        }
    }

    /// Sorts the newest first; each creation time is read once.
    pub fn sort(&mut self) {
        self.0.sort_by_cached_key(|c| std::cmp::Reverse::<Timestamp>(c.created_at()));
    }

    /// The containers in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Container> {
        self.0.iter()
    }
}

impl FromIterator<Container> for History {
    fn from_iter<I: IntoIterator<Item = Container>>(iter: I) -> Self {
        Self(iter.into_iter().collect())
    }
}

impl IntoIterator for History {
    type Item = Container;
    type IntoIter = std::vec::IntoIter<Container>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Status;

    fn at(id: &str, nanos: i128) -> Container {
        Container::builder(id, "name").created(Timestamp::from_unix_nanos(nanos)).build()
    }

    fn one() -> (MemoryStore, Container) {
        let (store, container) = (MemoryStore::new(), at("id", 1));
        store.add("id", container.clone());
        (store, container)
    }

    #[test]
    fn history_length() {
        let history: History = [at("a", 1), at("b", 2)].into_iter().collect();
        assert_eq!(history.len(), 2);
        assert!(!history.is_empty());
    }

    #[test]
    fn history_newer() {
        let history: History = [at("a", 1), at("b", 2)].into_iter().collect();
        assert!(history.newer(1, 0));
        assert!(!history.newer(0, 1));
        assert!(!history.newer(2, 0));
    }

    #[test]
    fn history_swap() {
        let mut history: History = [at("a", 1), at("b", 2)].into_iter().collect();
        history.swap(0, 1);
        assert!(!history.newer(1, 0));
        history.swap(0, 5);
        assert_eq!(history.iter().next().unwrap().id(), "b");
    }

    #[test]
    fn store_new() {
        assert!(MemoryStore::new().is_empty());
    }

    #[test]
    fn store_add() {
        let (store, container) = one();
        assert_eq!(store.get("id"), Some(container));
        assert_eq!(store.len(), 1);
    }

    #[test]
    fn store_delete() {
        let (store, _) = one();
        store.delete("id");
        assert_eq!((store.get("id"), store.len()), (None, 0));
    }

    #[test]
    fn store_delete_unknown() {
        let store = MemoryStore::new();
        store.delete("id");
        assert_eq!(store.len(), 0);
    }

    #[test]
    fn store_get_unknown() {
        assert_eq!(MemoryStore::new().get("id"), None);
    }

    #[test]
    fn store_list_newest_first() {
        let (store, container) = one();
        assert_eq!(store.list(), [container]);
        for n in 2..9 {
            store.add(&n.to_string(), at(&n.to_string(), n));
        }
        let ids: Vec<_> = store.list().iter().map(|c| c.id().to_owned()).collect();
        assert_eq!(ids, ["8", "7", "6", "5", "4", "3", "2", "id"]);
    }

    #[test]
    fn store_list_empty() {
        assert!(MemoryStore::new().list().is_empty());
    }

    #[test]
    fn store_find_with_a_true_filter() {
        let (store, container) = one();
        assert_eq!(store.find(Some(&|_: &Container| true)), Some(container));
    }

    #[test]
    fn store_find_without_a_filter() {
        let (store, container) = one();
        assert_eq!(store.find(None), Some(container));
    }

    #[test]
    fn store_find_with_a_false_filter() {
        let (store, _) = one();
        assert_eq!(store.find(Some(&|_: &Container| false)), None);
    }

    #[test]
    fn store_apply_sets_the_state() {
        let (store, container) = one();
        let barrier = std::sync::Barrier::new(2);
        store.add("other", at("other", 2));
        store.for_each_concurrent(Some(&|c: &Container| {
            // Passes only if both run at the same time.
            barrier.wait();
            c.update_state(|s| s.status = Status::Running);
            assert_eq!(store.len(), 2);
        }));
        assert_eq!(container.state().status, Status::Running);
    }

    #[test]
    fn store_apply_none() {
        let (store, container) = one();
        store.for_each_concurrent(None);
        assert_eq!(container.state().status, Status::Unknown);
    }
}
