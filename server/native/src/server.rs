//! The I/O thread: accept loops, connection limits, drain and close.

use std::cell::Cell;
use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use crate::batched_io::Chunks;
use crate::calls::Calls;
use crate::clock::{Clock, duration};
use crate::config::Settings;
use crate::connection::{self, Arrival, Common};
use crate::figures::{Figures, count};
use crate::gathering::Gathering;
use crate::guard::{self, IO_THREAD};
use crate::handover::Handover;
use crate::listen::{Listener, SocketFile};
use crate::outbox::Levels;
use crate::peer;
use crate::queue::{Actions, Events};
use crate::tls::Certificates;

/// How long an accept loop rests when descriptors or memory have run out.
const BACK_OFF: Duration = Duration::from_millis(100);
/// The shortest time that `close` gives to what it has to say.
const LAST_WORDS: Duration = Duration::from_millis(50);
/// How long connections without calls may take to say good-bye.
const GOOD_BYE: Duration = Duration::from_millis(500);

/// What both sides hold.
#[derive(Debug)]
pub struct Joint {
    /// Going up.
    pub events: Arc<Events>,
    /// Going down.
    pub actions: Arc<Actions>,
    /// Of streams.
    pub levels: Arc<Levels>,
    /// Counters.
    pub figures: Arc<Figures>,
    /// As configured.
    pub settings: Arc<Settings>,
    /// Rests of the I/O thread.
    pub gathering: Arc<Gathering>,
    /// Python's.
    pub clock: Clock,
}

/// The course of a server's life.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Phase {
    /// Listening.
    Serving,
    /// Told to go away, but where an exposure outlives that.
    Draining,
    /// Ending, after so many seconds at the latest.
    Closing(f64),
}

/// The phase as one exposure sees it.
#[derive(Clone)]
pub struct Phases {
    phase: watch::Receiver<Phase>,
    outlives_drain: bool,
}

impl Phases {
    /// Waits until this exposure has to stop listening and its connections have to go.
    pub async fn leave(&mut self) {
        let outlives = self.outlives_drain;
        let gone = |phase: &Phase| match phase {
            Phase::Serving => false,
            Phase::Draining => !outlives,
            Phase::Closing(_) => true,
        };
        // An error: the server object is gone, which is an end too.
        let _ = self.phase.wait_for(gone).await;
    }
}

/// A bound exposure on its way to the I/O thread.
#[derive(Debug)]
pub struct Bound {
    /// Its socket.
    pub listener: Listener,
    /// Its TLS.
    pub certificates: Option<Arc<Certificates>>,
}

/// The running I/O thread.
#[derive(Debug)]
pub struct Thread {
    handle: JoinHandle<()>,
    phase: watch::Sender<Phase>,
}

impl Thread {
    /// Starts it; the error is one sentence.
    pub fn start(joint: Arc<Joint>, bound: Vec<Bound>) -> Result<Self, String> {
        guard::install();
        let (phase, phases) = watch::channel(Phase::Serving);
        let (report, started) = mpsc::channel();
        let handle = std::thread::Builder::new()
            .name(IO_THREAD.to_owned())
            .spawn(move || run(&joint, bound, phases, &report))
            .map_err(|error| format!("can't start the I/O thread: {error}"))?;
        match started.recv() {
            Ok(Ok(())) => Ok(Self { handle, phase }),
            Ok(Err(error)) => Err(format!("can't start the I/O thread: {error}")),
            Err(_) => Err("the I/O thread ended at its start".to_owned()),
        }
    }

    /// Stops listening.
    pub fn drain(&self) {
        self.phase.send_if_modified(|phase| {
            let serving = *phase == Phase::Serving;
            if serving {
                *phase = Phase::Draining;
            }
            serving
        });
    }

    /// Ends it, and waits until it has ended.
    pub fn close(self, grace: f64) {
        self.phase.send_replace(Phase::Closing(grace));
        // A panic there has ended the process.
        let _ = self.handle.join();
    }
}

fn run(joint: &Arc<Joint>, bound: Vec<Bound>, phase: watch::Receiver<Phase>, report: &mpsc::Sender<io::Result<()>>) {
    let gathering = Arc::clone(&joint.gathering);
    let runtime = Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .thread_name("forebay-inflate")
        .max_blocking_threads(2)
        .on_thread_park(move || gathering.rest())
        .build_local(LocalOptions::default());
    match runtime {
        Ok(runtime) => runtime.block_on(serve(joint, bound, phase, report)),
        Err(error) => drop(report.send(Err(error))),
    }
}

async fn serve(
    joint: &Arc<Joint>,
    bound: Vec<Bound>,
    mut phase: watch::Receiver<Phase>,
    report: &mpsc::Sender<io::Result<()>>,
) {
    let calls = Rc::new(Calls::new(
        Handover::new(Arc::clone(&joint.events)),
        Arc::clone(&joint.levels),
        Arc::clone(&joint.figures),
        Arc::clone(&joint.settings),
        Arc::clone(&joint.gathering),
        joint.clock,
    ));
    let chunks = Rc::new(Chunks::default());
    let open = Rc::new(Cell::new(0_usize));
    for (exposure, bound) in bound.into_iter().enumerate() {
        let socket = match Accepting::new(bound.listener) {
            Ok(socket) => socket,
            Err(error) => return drop(report.send(Err(error))),
        };
        let accept = Accept {
            common: Common {
                calls: Rc::clone(&calls),
                settings: Arc::clone(&joint.settings),
                figures: Arc::clone(&joint.figures),
                chunks: Rc::clone(&chunks),
            },
            exposure,
            certificates: bound.certificates,
            phases: Phases {
                phase: phase.clone(),
                outlives_drain: joint.settings.exposures[exposure].outlives_drain,
            },
            here: Rc::new(Cell::new(0)),
            open: Rc::clone(&open),
        };
        tokio::task::spawn_local(accept.run(socket));
    }
    let _ = report.send(Ok(()));
    {
        let (flushed, timed, applied) = (Rc::clone(&calls), Rc::clone(&calls), Rc::clone(&calls));
        tokio::task::spawn_local(async move { flushed.handover.flush().await });
        tokio::task::spawn_local(async move { timed.keep_time().await });
        let actions = Arc::clone(&joint.actions);
        tokio::task::spawn_local(async move {
            loop {
                applied.apply(actions.take().await);
            }
        });
    }
    let grace = match phase
        .wait_for(|phase| matches!(phase, Phase::Closing(_)))
        .await
        .as_deref()
    {
        Ok(Phase::Closing(grace)) => duration(*grace),
        _ => Duration::ZERO,
    };
    let end = Instant::now() + grace.max(LAST_WORDS);
    // What was answered before `close` is not refused.
    calls.apply(joint.actions.take_now());
    calls.refuse_all(&joint.settings.refusals.draining);
    let quiet = async {
        while !calls.is_empty() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    let _ = timeout_at(end, quiet).await;
    let gone = async {
        while open.get() > 0 {
            sleep(Duration::from_millis(2)).await;
        }
    };
    let _ = timeout_at(end.min(Instant::now() + GOOD_BYE), gone).await;
}

/// A listening socket in the runtime.
enum Accepting {
    Tcp(TcpListener),
    Unix(
        UnixListener,
        #[allow(dead_code, reason = "its drop removes the file")] SocketFile,
    ),
}

enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Accepting {
    fn new(listener: Listener) -> io::Result<Self> {
        Ok(match listener {
            Listener::Tcp(listener) => Self::Tcp(TcpListener::from_std(listener)?),
            Listener::Unix(listener, file) => {
                let listener: StdUnixListener = listener;
                Self::Unix(UnixListener::from_std(listener)?, file)
            }
        })
    }

    async fn accept(&self) -> io::Result<(Accepted, String)> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                (Accepted::Tcp(stream), peer::address(address))
            }
            Self::Unix(listener, _) => (Accepted::Unix(listener.accept().await?.0), "unix:".to_owned()),
        })
    }
}

/// The accept loop of an exposure.
struct Accept {
    common: Common,
    exposure: usize,
    certificates: Option<Arc<Certificates>>,
    phases: Phases,
    /// Connections of this exposure.
    here: Rc<Cell<usize>>,
    /// Connections of all.
    open: Rc<Cell<usize>>,
}

impl Accept {
    async fn run(mut self, socket: Accepting) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.phases.leave() => return,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                // Over the limit: closed by the drop.
                Ok(_) if self.here.get() >= self.common.settings.limits.max_connections => {}
                Ok((stream, address)) => self.begin(stream, address),
                Err(error) if is_exhausted(&error) => sleep(BACK_OFF).await,
                // The caller had gone again.
                Err(_) => {}
            }
        }
    }

    fn begin(&self, stream: Accepted, address: String) {
        let arrival = Arrival {
            exposure: self.exposure,
            address,
            certificates: self.certificates.clone(),
        };
        let common = self.common.clone();
        let phases = self.phases.clone();
        let open = Open::new(&common.figures, [Rc::clone(&self.here), Rc::clone(&self.open)]);
        tokio::task::spawn_local(async move {
            let _open = open;
            match stream {
                Accepted::Tcp(stream) => connection::serve(&common, arrival, stream, phases).await,
                Accepted::Unix(stream) => connection::serve(&common, arrival, stream, phases).await,
            }
        });
    }
}

/// Counts a connection for as long as it is open.
struct Open {
    figures: Arc<Figures>,
    /// Of its exposure, and of all.
    counts: [Rc<Cell<usize>>; 2],
}

impl Open {
    fn new(figures: &Arc<Figures>, counts: [Rc<Cell<usize>>; 2]) -> Self {
        count(&figures.connections_total, 1);
        let open = Self {
            figures: Arc::clone(figures),
            counts,
        };
        open.change(|count| count + 1);
        open
    }
}

impl Open {
    fn change(&self, by: fn(usize) -> usize) {
        for count in &self.counts {
            count.set(by(count.get()));
        }
        let [_, all] = &self.counts;
        self.figures.connections.store(all.get() as u64, Relaxed);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.change(|count| count - 1);
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}
