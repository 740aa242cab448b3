//! A panic on the I/O thread ends the process: a server whose I/O is dead would look alive to its supervisor.

use std::sync::Once;

use crate::os;

/// The name of the I/O thread.
pub const IO_THREAD: &str = "forebay-io";

/// The exit code of a panic on the I/O thread.
pub const PANIC_EXIT: i32 = 71;

static INSTALLED: Once = Once::new();

/// Installs the panic hook of this library (a Python extension has its own; other libraries are not touched).
///
/// Tokio catches the panics of tasks, so that only a hook sees them all.
pub fn install() {
    INSTALLED.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            previous(info);
            if std::thread::current().name() == Some(IO_THREAD) {
                eprintln!("forebay: a panic on the I/O thread; exit {PANIC_EXIT}");
                os::exit(PANIC_EXIT);
            }
        }));
    });
}
