//! A panic on the I/O thread ends the process with a code of its own, wherever it happens.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::process::Command;

use forebay_native::guard;

const CHILD: &str = "FOREBAY_GUARD_CHILD";

/// Panics in a task on a thread of this name, in a process of its own; returns its exit code and stderr.
fn panicking_process(thread: &str) -> (Option<i32>, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, thread)
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn child() {
    let Ok(name) = std::env::var(CHILD) else {
        return;
    };
    guard::install();
    let body = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let _ = tokio::spawn(async { panic!("on purpose") }).await;
        });
    };
    std::thread::Builder::new()
        .name(name)
        .spawn(body)
        .unwrap()
        .join()
        .unwrap();
}

#[test]
fn a_panic_on_the_io_thread_ends_the_process() {
    let (code, errors) = panicking_process(guard::IO_THREAD);
    assert_eq!(code, Some(guard::PANIC_EXIT));
    assert!(errors.contains("on purpose"));
    assert!(errors.contains("exit 71"));
}

#[test]
fn a_panic_elsewhere_does_not() {
    assert_eq!(panicking_process("other").0, Some(0));
}
