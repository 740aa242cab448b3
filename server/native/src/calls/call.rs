//! What is known of one open call.

use std::sync::Arc;
use std::task::Waker;

use crate::outbox::{Level, Outbox};
use crate::status::Status;

/// How far a call has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum State {
    /// Not given to Python yet.
    Arriving,
    /// Given to Python, and ended by neither side.
    Live,
    /// Ended; its last bytes are sent.
    Over,
}

/// How a call ends.
#[derive(Debug)]
pub(super) enum Ending {
    Ok,
    Fail(Box<Status>),
}

#[derive(Debug)]
pub(super) struct Call {
    pub id: u64,
    /// The method's index, which each of its events carries.
    pub method: u16,
    pub state: State,
    /// Whether several messages may be sent.
    pub streams: bool,
    /// The task that runs the call, from its first poll.
    pub task: Option<Waker>,
    /// The task that reads a stream's messages, while it waits.
    pub reader: Option<Waker>,
    pub deadline: f64,
    /// When a message in parts, or an outbox that nobody empties, has taken too long; infinity mostly.
    pub read_stall: f64,
    pub write_stall: f64,
    /// A piece has been given to hyper, which has not come back for more.
    pub piece_out: bool,
    /// To be reset.
    pub cut: bool,
    pub credit: u64,
    /// Bytes that have arrived and are in no event yet.
    pub held: usize,
    pub outbox: Outbox,
    pub level: Option<Arc<Level>>,
    pub ending: Option<Ending>,
}

impl Call {
    pub fn new(id: u64, method: u16, streams: bool, deadline: f64) -> Self {
        Self {
            id,
            method,
            state: State::Arriving,
            streams,
            task: None,
            reader: None,
            deadline,
            read_stall: f64::INFINITY,
            write_stall: f64::INFINITY,
            piece_out: false,
            cut: false,
            credit: 0,
            held: 0,
            outbox: Outbox::default(),
            level: None,
            ending: None,
        }
    }

    /// Ends it, behind what is in its outbox.
    pub fn end(&mut self, ending: Ending) {
        self.state = State::Over;
        self.ending = Some(ending);
        self.rouse();
    }

    /// Lets both of its tasks look at what is new.
    pub fn rouse(&mut self) {
        self.rouse_task();
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Lets the task that answers look.
    pub fn rouse_task(&self) {
        if let Some(task) = &self.task {
            task.wake_by_ref();
        }
    }

    /// When time next matters to it, in seconds.
    pub fn due(&self) -> f64 {
        let due = self.write_stall;
        if self.state == State::Over {
            return due;
        }
        due.min(self.deadline).min(self.read_stall)
    }
}
