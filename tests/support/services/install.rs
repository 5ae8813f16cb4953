//! Getting what is not there: Debian packages, or containers.

use std::path::Path;
use std::process::Command;

use super::Failure;
use super::programs::{folder_of, is_root, run};

/// Installs a Debian package.
pub(super) fn apt(package: &str) -> Result<(), Failure> {
    folder_of("apt-get", &[])?;
    if !is_root() {
        return Err("only root can install packages".to_owned());
    }
    let wait = ["-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=2"];
    let apt = || {
        let mut command = Command::new("apt-get");
        command.args(wait).env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    run(apt().arg("update"))?;
    run(apt().args(["install", "--yes", "--no-install-recommends", package])).map(drop)
}

/// Starts a service of `docker-compose.yml`, which listens on the standard port.
pub(super) fn compose(service: &str) -> Result<(), Failure> {
    folder_of("docker", &[])?;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker-compose.yml");
    let mut command = Command::new("docker");
    command.arg("compose").arg("--file").arg(file);
    run(command.args(["up", "--detach", "--wait", "--no-deps", service])).map(drop)
}
