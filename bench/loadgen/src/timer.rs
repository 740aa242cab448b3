//! A timer finer than tokio's millisecond: an open loop at thousands of requests a second needs it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// Waits for instants, one at a time.
pub struct Timer {
    descriptor: AsyncFd<OwnedFd>,
}

impl Timer {
    /// Makes the kernel's timer; needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn new() -> io::Result<Self> {
        let descriptor = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "it is unsound for types whose AsRawFd lies; OwnedFd's does not, and its successor is unsafe"
        )]
        let descriptor = AsyncFd::new(descriptor)?;
        Ok(Self { descriptor })
    }

    /// Returns at `instant`, or at once if it has passed. May be dropped and called again.
    ///
    /// # Errors
    /// The kernel refuses, which it does not.
    pub async fn until(&self, instant: Instant) -> io::Result<()> {
        let wait = instant.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return Ok(());
        }
        timerfd_settime(self.descriptor.get_ref(), TimerfdTimerFlags::empty(), &once(wait))?;
        loop {
            let mut ready = self.descriptor.readable().await?;
            ready.clear_ready();
            // A readiness left over from an earlier instant is no reason to return.
            if Instant::now() >= instant {
                return Ok(());
            }
        }
    }
}

fn once(wait: Duration) -> Itimerspec {
    Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec {
            tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn it_wakes_at_each_instant_and_never_before() {
        let timer = Timer::new().unwrap();
        for _ in 0..20 {
            let due = Instant::now() + Duration::from_micros(300);
            timer.until(due).await.unwrap();
            assert!(Instant::now() >= due);
        }
        timer.until(Instant::now()).await.unwrap();
    }
}
