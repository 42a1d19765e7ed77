//! A value that is replaced as a whole while others read it.

use std::sync::{Arc, PoisonError, RwLock};

/// Holds what is in force now. Whoever builds a new one replaces it; readers keep what they took
/// until they drop it, so a request sees one state from its beginning to its end.
#[derive(Debug)]
pub struct Current<T>(RwLock<Arc<T>>);

impl<T> Current<T> {
    /// Holds `value` until another is set.
    pub fn new(value: T) -> Self {
        Self(RwLock::new(Arc::new(value)))
    }

    /// What is in force. Never waits for longer than another thread copies a pointer.
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts `value` in the place of what was in force, which lives on with those who took it.
    pub fn set(&self, value: impl Into<Arc<T>>) {
        let value = value.into();
        let before =
            std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), value);
        // Dropped here, where no reader waits for it.
        drop(before);
    }
}

impl<T: Default> Default for Current<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}
