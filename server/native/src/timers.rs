//! A timer wheel: one timer per call slot, set and cleared in O(1), without memory of its own for timers that are gone.
//!
//! Coarse on purpose (a tick is 4 ms): it serves deadlines and stalls. Pure: time is an argument.

/// Seconds between two ticks.
pub const TICK: f64 = 0.004;

/// Ticks of one turn of the wheel, about 16 s. Later timers are passed over until their turn comes.
const BUCKETS: usize = 4096;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
    /// The tick it is due at; `u64::MAX` when not set.
    tick: u64,
}

const UNSET: Link = Link {
    previous: NONE,
    next: NONE,
    tick: u64::MAX,
};

/// Timers by slot number.
#[derive(Debug)]
pub struct Wheel {
    heads: Vec<u32>,
    links: Vec<Link>,
    /// All ticks up to this one have been looked at.
    done: u64,
    set: usize,
}

impl Wheel {
    /// `now` in seconds.
    #[must_use]
    pub fn new(now: f64) -> Self {
        Self {
            heads: vec![NONE; BUCKETS],
            links: Vec::new(),
            done: (now / TICK) as u64,
            set: 0,
        }
    }

    /// When the timer of a slot is due, in seconds; infinity if it is not set.
    #[must_use]
    pub fn due(&self, slot: u32) -> f64 {
        match self.links.get(slot as usize) {
            Some(link) if link.tick != u64::MAX => link.tick as f64 * TICK,
            _ => f64::INFINITY,
        }
    }

    /// Sets the timer of a slot to `due` (finite seconds), in place of what it was.
    pub fn set(&mut self, slot: u32, due: f64) {
        self.clear(slot);
        if self.links.len() <= slot as usize {
            self.links.resize(slot as usize + 1, UNSET);
        }
        let tick = ((due / TICK).ceil() as u64).max(self.done + 1);
        let bucket = tick as usize % BUCKETS;
        let next = self.heads[bucket];
        self.links[slot as usize] = Link {
            previous: NONE,
            next,
            tick,
        };
        if next != NONE {
            self.links[next as usize].previous = slot;
        }
        self.heads[bucket] = slot;
        self.set += 1;
    }

    /// Clears the timer of a slot, if it is set.
    pub fn clear(&mut self, slot: u32) {
        let Some(link) = self.links.get_mut(slot as usize) else {
            return;
        };
        if link.tick == u64::MAX {
            return;
        }
        let Link { previous, next, tick } = std::mem::replace(link, UNSET);
        if previous == NONE {
            self.heads[tick as usize % BUCKETS] = next;
        } else {
            self.links[previous as usize].next = next;
        }
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        self.set -= 1;
    }

    /// When to look next, in seconds: not later than the first timer. None without timers.
    #[must_use]
    pub fn next(&self) -> Option<f64> {
        if self.set == 0 {
            return None;
        }
        let ahead = (1..=BUCKETS as u64)
            .find(|ahead| self.heads[(self.done + ahead) as usize % BUCKETS] != NONE)
            .unwrap_or(BUCKETS as u64);
        Some((self.done + ahead) as f64 * TICK)
    }

    /// Clears and gives out the slots whose timers are due.
    pub fn expire(&mut self, now: f64, due: &mut Vec<u32>) {
        let last = (now / TICK) as u64;
        // After a long sleep one turn visits every bucket.
        let first = (self.done + 1).max(last.saturating_sub(BUCKETS as u64 - 1));
        let begin = due.len();
        for tick in first..=last {
            let mut slot = self.heads[tick as usize % BUCKETS];
            while slot != NONE {
                let link = self.links[slot as usize];
                if link.tick <= last {
                    due.push(slot);
                }
                slot = link.next;
            }
        }
        for &slot in &due[begin..] {
            self.clear(slot);
        }
        self.done = self.done.max(last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expired(wheel: &mut Wheel, now: f64) -> Vec<u32> {
        let mut due = Vec::new();
        wheel.expire(now, &mut due);
        due.sort_unstable();
        due
    }

    #[test]
    fn fires_at_its_tick_and_not_before() {
        let mut wheel = Wheel::new(100.0);
        wheel.set(3, 101.0);
        assert_eq!(wheel.next(), Some(101.0));
        assert_eq!(expired(&mut wheel, 100.995), Vec::<u32>::new());
        assert_eq!(expired(&mut wheel, 101.001), vec![3]);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn a_timer_beyond_one_turn_waits_for_its_turn() {
        let mut wheel = Wheel::new(0.0);
        let turn = BUCKETS as f64 * TICK;
        wheel.set(0, 1.0);
        wheel.set(1, 1.0 + turn);
        assert_eq!(expired(&mut wheel, 1.001), vec![0]);
        assert_eq!(expired(&mut wheel, turn), Vec::<u32>::new());
        assert_eq!(expired(&mut wheel, 1.001 + turn), vec![1]);
    }

    #[test]
    fn clearing_and_moving_keep_the_neighbours() {
        let mut wheel = Wheel::new(0.0);
        for slot in 0..5 {
            wheel.set(slot, 2.0);
        }
        wheel.clear(0);
        wheel.clear(2);
        wheel.clear(2);
        wheel.set(4, 3.0);
        assert_eq!(expired(&mut wheel, 2.5), vec![1, 3]);
        assert_eq!(expired(&mut wheel, 3.5), vec![4]);
    }

    #[test]
    fn a_long_sleep_misses_nothing() {
        let mut wheel = Wheel::new(0.0);
        for slot in 0..100 {
            wheel.set(slot, f64::from(slot) + 0.5);
        }
        assert_eq!(expired(&mut wheel, 1000.0).len(), 100);
    }

    #[test]
    fn a_time_that_has_passed_is_due_at_the_next_tick() {
        let mut wheel = Wheel::new(50.0);
        wheel.set(0, 1.0);
        assert_eq!(expired(&mut wheel, 50.0 + 2.0 * TICK), vec![0]);
    }
}
