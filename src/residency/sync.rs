//! What leases and reporters share with the owner, who runs on another thread.
//!
//! With the feature `shuttle` a test's scheduler decides at each of these operations which thread
//! goes on, and so explores in which order they may happen.

#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::{Mutex, MutexGuard};

#[cfg(not(feature = "shuttle"))]
pub(crate) use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::sync::{Mutex, MutexGuard};

#[cfg(feature = "shuttle")]
pub(crate) use self::explored::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// A channel with the face of tokio's, as far as it is used here.
#[cfg(feature = "shuttle")]
mod explored {
    use std::collections::VecDeque;
    use std::future::poll_fn;
    use std::sync::{Arc, PoisonError};
    use std::task::{Poll, Waker};

    use super::{Mutex, MutexGuard};

    struct Queue<T> {
        messages: VecDeque<T>,
        waker: Option<Waker>,
        senders: usize,
        is_received: bool,
    }

    type Shared<T> = Arc<Mutex<Queue<T>>>;

    fn lock<T>(shared: &Shared<T>) -> MutexGuard<'_, Queue<T>> {
        shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) struct UnboundedSender<T>(Shared<T>);

    pub(crate) struct UnboundedReceiver<T>(Shared<T>);

    pub(crate) fn unbounded_channel<T>() -> (UnboundedSender<T>, UnboundedReceiver<T>) {
        let (messages, waker) = (VecDeque::new(), None);
        let queue = Queue { messages, waker, senders: 1, is_received: true };
        let shared = Arc::new(Mutex::new(queue));
        (UnboundedSender(Arc::clone(&shared)), UnboundedReceiver(shared))
    }

    impl<T> UnboundedSender<T> {
        /// Gives the message back where nobody receives any more.
        pub(crate) fn send(&self, message: T) -> Result<(), T> {
            let mut queue = lock(&self.0);
            if !queue.is_received {
                return Err(message);
            }
            queue.messages.push_back(message);
            let waker = queue.waker.take();
            drop(queue);
            waker.into_iter().for_each(Waker::wake);
            // Whoever receives it may be done with it before the sender goes on.
            shuttle::thread::yield_now();
            Ok(())
        }
    }

    impl<T> Clone for UnboundedSender<T> {
        fn clone(&self) -> Self {
            lock(&self.0).senders += 1;
            Self(Arc::clone(&self.0))
        }
    }

    impl<T> Drop for UnboundedSender<T> {
        fn drop(&mut self) {
            let mut queue = lock(&self.0);
            queue.senders -= 1;
            let waker = queue.waker.take();
            drop(queue);
            waker.into_iter().for_each(Waker::wake);
        }
    }

    impl<T> UnboundedReceiver<T> {
        pub(crate) async fn recv(&mut self) -> Option<T> {
            poll_fn(|context| {
                let mut queue = lock(&self.0);
                match queue.messages.pop_front() {
                    None if queue.senders > 0 => {
                        queue.waker = Some(context.waker().clone());
                        Poll::Pending
                    }
                    message => Poll::Ready(message),
                }
            })
            .await
        }

        pub(crate) fn try_recv(&mut self) -> Result<T, ()> {
            lock(&self.0).messages.pop_front().ok_or(())
        }

        pub(crate) fn len(&self) -> usize {
            lock(&self.0).messages.len()
        }
    }

    impl<T> Drop for UnboundedReceiver<T> {
        fn drop(&mut self) {
            let mut queue = lock(&self.0);
            queue.is_received = false;
            let messages = std::mem::take(&mut queue.messages);
            drop(queue);
            drop(messages);
        }
    }
}
