//! Whether the ring driver works here, found out by trying.

use super::uring;
use super::{DriverChoice, DriverKind};

/// What to do about the driver that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Run this one.
    Use(DriverKind),
    /// `auto` falls back to epoll, for this reason.
    FellBack(String),
    /// `uring` was asked for and does not work, for this reason.
    Unusable(String),
}

/// The oldest kernel whose multishot accept works with deferred task work (it was faulty on 6.1 to 6.8).
const KERNEL_MIN: (u32, u32) = (6, 12);
/// What glommio wants for its own rings, in bytes.
const MEMLOCK_MIN: u64 = 512 << 10;

/// Decides which driver runs.
pub fn probe(choice: DriverChoice) -> Probe {
    match (choice, uring_works()) {
        (DriverChoice::Epoll, _) => Probe::Use(DriverKind::Epoll),
        (_, Ok(())) => Probe::Use(DriverKind::Uring),
        (DriverChoice::Auto, Err(why)) => Probe::FellBack(why),
        (DriverChoice::Uring, Err(why)) => Probe::Unusable(why),
    }
}

fn uring_works() -> Result<(), String> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    if kernel_version(&release).is_none_or(|version| version < KERNEL_MIN) {
        return Err(format!("it needs Linux {}.{} or newer, this is {release}", KERNEL_MIN.0, KERNEL_MIN.1));
    }
    let memlock = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    if memlock.is_some_and(|bytes| bytes < MEMLOCK_MIN) {
        return Err("the limit of locked memory is below 512 KiB: raise it (`ulimit -l`, LimitMEMLOCK)".to_owned());
    }
    // On a thread of its own: when a ring ends, the kernel interrupts a call that its maker happens to wait in.
    let tried = std::thread::spawn(uring::try_setup).join().unwrap_or_else(|_| Err(std::io::Error::other("panic")));
    tried.map_err(|error| {
        format!(
            "io_uring is refused ({error}): look at kernel.io_uring_disabled and at the container's seccomp profile"
        )
    })
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::kernel_version;

    #[test]
    fn versions_compare_by_number() {
        assert_eq!(kernel_version("6.18.44-fc"), Some((6, 18)));
        assert!(kernel_version("6.9.1") < kernel_version("6.12"));
        assert_eq!(kernel_version("unknown"), None);
    }
}
