//! The two calls into libc that have no safe form. The only unsafe code of the crate.

/// Raises a signal in this thread; returns when its handler has run.
pub fn raise(signal: i32) {
    // SAFETY: `raise` has no memory-safety conditions. An invalid number is reported, and there is nothing to do then.
    #[allow(unsafe_code)]
    unsafe {
        libc::raise(signal);
    }
}

/// Ends the process at once: no destructors, no `atexit`, nothing that a stuck thread could hold up.
pub fn exit(code: i32) -> ! {
    // SAFETY: `_exit` does not return and touches none of our memory.
    #[allow(unsafe_code)]
    unsafe {
        libc::_exit(code)
    }
}
