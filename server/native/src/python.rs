//! The class `Server`: Python objects to actions, events to Python objects.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes};
use pyo3::exceptions::{PyException, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use crate::clock::{Clock, duration};
use crate::config::{Failures, Settings};
use crate::figures::Figures;
use crate::framing::{self, Payload};
use crate::gathering::Gathering;
use crate::headers::{Metadata, Value};
use crate::listen;
use crate::outbox::Levels;
use crate::peer::Peer;
use crate::queue::{Act, Action, Actions, Event, Events, Framed, lock};
use crate::server::{Bound as BoundExposure, Joint, Thread};
use crate::tls::Certificates;
use crate::watchdog::Watchdog;

/// Messages above this are sent from Python's own bytes object; below, a copy is cheaper.
const COPY: usize = 16 << 10;

pyo3::create_exception!(
    forebay_native,
    StartError,
    PyException,
    "The server can't start, or certificates can't be used. The text is one sentence for the operator."
);

const RESPOND: u8 = 1;
const SEND: u8 = 2;
const FINISH: u8 = 3;
const FAIL: u8 = 4;
const CREDIT: u8 = 5;

/// A gRPC server. The rules of `wire.port.Wire` hold for the methods of the same names.
#[pyclass(frozen, module = "forebay_native")]
pub struct Server {
    joint: Arc<Joint>,
    certificates: Mutex<Vec<Arc<Certificates>>>,
    thread: Mutex<Option<Thread>>,
    watchdog: Watchdog,
    peer: Py<PyAny>,
}

#[pymethods]
impl Server {
    /// `config` is a `wire.port.WireConfig`, `peer` the class `wire.port.Peer`.
    #[new]
    fn new(config: &Bound<'_, PyAny>, peer: Py<PyAny>) -> PyResult<Self> {
        let clock = Clock::new(config.py().import("time")?.call_method0("monotonic")?.extract()?);
        let settings = Settings::read(config)?;
        Ok(Self {
            joint: Arc::new(Joint {
                events: Arc::new(Events::new(duration(settings.busy_poll))),
                actions: Arc::new(Actions::default()),
                levels: Arc::new(Levels::default()),
                figures: Arc::new(Figures::default()),
                settings: Arc::new(settings),
                gathering: Arc::new(Gathering::new(clock)),
                clock,
            }),
            certificates: Mutex::default(),
            thread: Mutex::default(),
            watchdog: Watchdog::default(),
            peer,
        })
    }

    /// Listens. Returns the bound addresses. Raises `StartError`.
    fn start(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        py.detach(|| self.listen()).map_err(StartError::new_err)
    }

    /// Waits for events and gives them out, as tuples.
    fn take<'py>(&self, py: Python<'py>, most: usize, timeout: f64) -> PyResult<Bound<'py, PyList>> {
        let events = py.detach(|| {
            self.watchdog.enter();
            let events = self.joint.events.take(most, duration(timeout));
            self.watchdog.leave();
            events
        });
        // From here on they are the taker's to count.
        self.joint.figures.release(events.iter().map(|event| event.held).sum());
        let list = PyList::empty(py);
        for event in events {
            list.append(self.event(py, event)?)?;
        }
        Ok(list)
    }

    /// Carries out actions. Returns the streams whose outbox is full.
    fn answer(&self, actions: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
        let mut batch = Vec::with_capacity(actions.len()?);
        let mut sent = Vec::new();
        let mut failures = Failures::default();
        for action in actions.try_iter()? {
            batch.push(self.action(action?.cast::<PyTuple>()?, &mut sent, &mut failures)?);
        }
        // Before the batch is handed over, see `Level::fall`.
        let full = self.rise(sent);
        self.joint.actions.extend(batch);
        Ok(full)
    }

    /// Ends the present or next `take` early.
    fn wake(&self) {
        self.joint.events.wake();
    }

    /// Lets what arrives before then, in `time.monotonic()` seconds, wait for more.
    fn gather(&self, until: f64) {
        self.joint.gathering.set(until);
    }

    /// Sets the watchdog. `dump_signal` is raised before the end; 0: none.
    #[pyo3(signature = (budget, dump_signal))]
    fn watch(&self, budget: Option<f64>, dump_signal: i32) -> PyResult<()> {
        Ok(self.watchdog.watch(budget.map(duration), dump_signal)?)
    }

    /// Reads the TLS files again. Raises `StartError`; then all the old ones stay.
    fn renew_certificates(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            let all = lock(&self.certificates);
            let next: Result<Vec<_>, String> = all.iter().map(|certificates| certificates.reread()).collect();
            for (certificates, next) in all.iter().zip(next?) {
                certificates.replace(next);
            }
            Ok(())
        })
        .map_err(StartError::new_err::<String>)
    }

    /// Counters and gauges by the names of `wire.port.Figures`.
    fn figures<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let figures = &self.joint.figures;
        let dict = PyDict::new(py);
        dict.set_item("connections", figures.connections.load(Relaxed))?;
        dict.set_item("connections_total", figures.connections_total.load(Relaxed))?;
        dict.set_item("calls", figures.calls.load(Relaxed))?;
        dict.set_item("calls_total", figures.calls_total.load(Relaxed))?;
        dict.set_item("held_bytes", figures.held_bytes.load(Relaxed))?;
        dict.set_item("received_bytes_total", figures.received_bytes_total.load(Relaxed))?;
        dict.set_item("sent_bytes_total", figures.sent_bytes_total.load(Relaxed))?;
        dict.set_item("refused_total", figures.refused_total.load(Relaxed))?;
        Ok(dict)
    }

    /// Stops listening, and tells connections to go away.
    fn drain(&self) {
        if let Some(thread) = &*lock(&self.thread) {
            thread.drain();
        }
    }

    /// Closes everything within about `grace` seconds. A second one does nothing.
    fn close(&self, py: Python<'_>, grace: f64) -> PyResult<()> {
        self.watchdog.watch(None, 0)?;
        py.detach(|| {
            if let Some(thread) = lock(&self.thread).take() {
                thread.close(grace);
            }
        });
        Ok(())
    }
}

impl Server {
    fn listen(&self) -> Result<Vec<String>, String> {
        let mut thread = lock(&self.thread);
        if thread.is_some() {
            return Err("the server has been started already".to_owned());
        }
        let mut addresses = Vec::new();
        let mut bound = Vec::new();
        let mut renewable = Vec::new();
        for exposure in &self.joint.settings.exposures {
            let context = |error: String| format!("exposure {}: {error}", exposure.name);
            let certificates = match &exposure.tls {
                None => None,
                Some(files) => Some(Arc::new(Certificates::read(files).map_err(context)?)),
            };
            renewable.extend(certificates.clone());
            let (listener, address) = listen::bind(&exposure.address, exposure.reuse_port).map_err(context)?;
            addresses.push(address);
            bound.push(BoundExposure { listener, certificates });
        }
        *thread = Some(Thread::start(Arc::clone(&self.joint), bound)?);
        *lock(&self.certificates) = renewable;
        Ok(addresses)
    }

    fn event<'py>(&self, py: Python<'py>, event: Event) -> PyResult<Bound<'py, PyTuple>> {
        let none = || py.None().into_bound(py);
        let body = match event.body {
            None => none(),
            Some(payload) => bytes(py, &payload)?.into_any(),
        };
        let (peer, metadata) = match event.origin {
            None => (none(), none()),
            Some(origin) => (self.peer(py, &origin.peer)?, metadata(py, origin.metadata)?),
        };
        (
            event.kind,
            event.call,
            event.method,
            body,
            event.deadline,
            peer,
            metadata,
        )
            .into_pyobject(py)
    }

    fn peer<'py>(&self, py: Python<'py>, peer: &Peer) -> PyResult<Bound<'py, PyAny>> {
        let make = || self.peer.call1(py, (peer.exposure, &peer.address, &peer.identity));
        Ok(peer.object.get_or_try_init(py, make)?.bind(py).clone())
    }

    fn action<'py>(
        &self,
        action: &Bound<'py, PyTuple>,
        sent: &mut Vec<(u64, usize)>,
        failures: &mut Failures<'py>,
    ) -> PyResult<Action> {
        let call: u64 = action.get_item(1)?.extract()?;
        let argument = action.get_item(2)?;
        let act = match action.get_item(0)?.extract()? {
            RESPOND => match self.framed(&argument)? {
                Some(message) => Act::Respond(message),
                None => Act::TooLarge { last: true },
            },
            SEND => match self.framed(&argument)? {
                Some(message) => {
                    sent.push((call, message.len()));
                    Act::Send(message)
                }
                None => Act::TooLarge { last: false },
            },
            FINISH => Act::Finish,
            FAIL => Act::Fail(failures.status(&argument)?),
            CREDIT => Act::Credit(argument.extract()?),
            other => return Err(PyValueError::new_err(format!("no such action: {other}"))),
        };
        Ok(Action { call, act })
    }

    /// A message with its prefix; None if it is over the limit.
    fn framed(&self, message: &Bound<'_, PyAny>) -> PyResult<Option<Framed>> {
        let message = message.cast::<PyBytes>()?;
        let bytes = message.as_bytes();
        if bytes.len() > self.joint.settings.limits.max_send_bytes {
            return Ok(None);
        }
        let prefix = framing::prefix(bytes.len());
        if bytes.len() > COPY {
            let owner = PyBackedBytes::from(message.clone());
            return Ok(Some(Framed {
                head: Bytes::copy_from_slice(&prefix),
                rest: Some(Bytes::from_owner(owner)),
            }));
        }
        let mut head = Vec::with_capacity(prefix.len() + bytes.len());
        head.put_slice(&prefix);
        head.put_slice(bytes);
        Ok(Some(Framed {
            head: head.into(),
            rest: None,
        }))
    }

    fn rise(&self, sent: Vec<(u64, usize)>) -> Vec<u64> {
        let mut full = Vec::new();
        for (call, bytes) in sent {
            let Some(level) = self.joint.levels.get(call) else {
                continue;
            };
            if level.rise(bytes, self.joint.settings.limits.outbox_bytes) && !full.contains(&call) {
                full.push(call);
            }
        }
        full
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The I/O thread never needs the GIL, so waiting for it here can't lock up.
        if let Some(thread) = lock(&self.thread).take() {
            thread.close(0.0);
        }
    }
}

fn bytes<'py>(py: Python<'py>, payload: &Payload) -> PyResult<Bound<'py, PyBytes>> {
    match payload.contiguous() {
        Some(bytes) => Ok(PyBytes::new(py, bytes)),
        None => PyBytes::new_with(py, payload.len(), |target| {
            payload.copy_to(target);
            Ok(())
        }),
    }
}

fn metadata(py: Python<'_>, metadata: Metadata) -> PyResult<Bound<'_, PyAny>> {
    if metadata.is_empty() {
        return Ok(py.None().into_bound(py));
    }
    let list = PyList::empty(py);
    for (name, value) in metadata {
        let value = match value {
            // Printable ASCII, as `headers::parse` has seen to.
            Value::Text(value) => {
                let text = value.to_str().map_err(|_| PyTypeError::new_err("not ASCII"))?;
                PyString::new(py, text).into_any()
            }
            Value::Binary(value) => PyBytes::new(py, &value).into_any(),
        };
        list.append((name.as_str(), value))?;
    }
    Ok(list.into_any())
}
