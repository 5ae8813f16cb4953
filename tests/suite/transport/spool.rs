//! The spool only: what lies in the directory, and processes that share it.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use branchline::Kind;
use branchline::transport::{BODY_BYTES_MAX, Outcome, Settings};

use super::*;

/// Tells the test binary, started once more, what to do as another process.
const ROLE: &str = "BRANCHLINE_TEST_SPOOL_ROLE";

async fn with_bench(test: impl FnOnce(&Bench) -> BoxFuture<'_, ()>) {
    Bench::spool().run(test).await;
}

fn folder(bench: &Bench, queue: Queue) -> PathBuf {
    bench.directory.as_ref().unwrap().path().join("spool").join(queue.name())
}

/// The names in a folder but for the lock's, in order.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".lock"))
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_a_file_until_it_is_acknowledged() {
    with_bench(|bench| {
        Box::pin(async move {
            let transport = bench.open();
            let queue = bench.declared(&*transport).await;
            publish(&*transport, numbered(queue, 0, 3)).await;
            let files = names(&folder(bench, queue));
            assert_eq!(files.len(), 3);
            assert!(files.iter().all(|name| name.ends_with(".records.msg")), "{files:?}");
            let mut consumer = transport.consume(queue, 10).await.unwrap();
            let (_, tag) = take(&mut *consumer, 2).await;
            assert_eq!(names(&folder(bench, queue)), files);
            consumer.acknowledge(tag).await.unwrap();
            assert_eq!(names(&folder(bench, queue)), files[2..]);
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_directory_is_as_good_as_the_directory() {
    with_bench(|bench| {
        Box::pin(async move {
            let transport = bench.open();
            let queue = bench.declared(&*transport).await;
            publish(&*transport, numbered(queue, 0, 20)).await;
            let _reading = transport.consume(queue, 1).await.unwrap().next(SOON).await.unwrap();

            let stick = TempDir::new().unwrap();
            let to = stick.path().join("carried");
            let from = folder(bench, queue);
            let copied = Command::new("cp").arg("-r").arg(from.parent().unwrap()).arg(&to).status();
            assert!(copied.unwrap().success());
            let carried =
                transport::connect(&format!("spool:{}", to.display()), &bench.settings).unwrap();
            let mut consumer = carried.consume(queue, 100).await.unwrap();
            let (numbers, tag) = take(&mut *consumer, 20).await;
            assert!(numbers.into_iter().eq(0..20));
            consumer.acknowledge(tag).await.unwrap();
            let answer = Queue { to: queue.from, from: queue.to, lane: Lane::Acks };
            carried.declare(answer).await.unwrap();
            publish(&*carried, numbered(answer, 9, 1)).await;
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_message_is_left_alone() {
    with_bench(|bench| {
        Box::pin(async move {
            let transport = bench.open();
            let queue = bench.declared(&*transport).await;
            let folder = folder(bench, queue);
            let foreign = [
                "README.txt",
                "00000000000000000001-0000000g.records.msg",
                "1-00000000.records.msg",
                "00000000000000000001-00000000.records.msg~",
                "._00000000000000000001-00000000.records.msg", // as a Mac leaves them on a stick
                ".00000000000000000001-00000000.records.msg.tmp",
            ];
            for name in foreign {
                fs::write(folder.join(name), b"foreign").unwrap();
            }
            fs::create_dir(folder.join("00000000000000000002-00000000.records.msg")).unwrap();
            #[cfg(unix)]
            std::os::unix::fs::symlink(
                "/dev/zero",
                folder.join("00000000000000000003-00000000.acks.msg"),
            )
            .unwrap();
            publish(&*transport, numbered(queue, 5, 1)).await;
            let mut consumer = transport.consume(queue, 10).await.unwrap();
            assert_eq!(take(&mut *consumer, 1).await.0, [5]);
            nothing(&mut *consumer).await;
            for name in foreign {
                assert!(folder.join(name).exists(), "{name}");
            }
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_half_written_is_removed() {
    with_bench(|bench| {
        Box::pin(async move {
            let transport = bench.open();
            let queue = bench.declared(&*transport).await;
            let folder = folder(bench, queue);
            let half = |time: u64| folder.join(format!(".{time:020}-0000abcd.records.msg.tmp"));
            let (old, fresh) = (half(1), half(2));
            for path in [&old, &fresh] {
                fs::write(path, b"half").unwrap();
            }
            let long_ago = SystemTime::now() - Duration::from_secs(3_600);
            File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();
            let mut consumer = transport.consume(queue, 10).await.unwrap();
            nothing(&mut *consumer).await;
            assert!(!old.exists(), "a crash's");
            assert!(fresh.exists(), "perhaps being written");
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_file_is_moved_aside() {
    with_bench(|bench| {
        Box::pin(async move {
            let transport = bench.open();
            let queue = bench.declared(&*transport).await;
            let folder = folder(bench, queue);
            let name = "00000000000000000001-0000abcd.records.msg";
            let file = File::create(folder.join(name)).unwrap();
            file.set_len(BODY_BYTES_MAX as u64 + 1).unwrap();
            publish(&*transport, numbered(queue, 5, 1)).await;
            let mut consumer = transport.consume(queue, 10).await.unwrap();
            assert_eq!(take(&mut *consumer, 1).await.0, [5]);
            assert!(folder.join("rejected").join(name).exists());
            assert!(!folder.join(name).exists());
        })
    })
    .await;
}

/// The clock may be set back between two messages, or between two runs.
#[tokio::test(flavor = "multi_thread")]
async fn order_survives_a_clock_that_was_set_back() {
    with_bench(|bench| {
        Box::pin(async move {
            let transport = bench.open();
            let queue = bench.declared(&*transport).await;
            let next_year = SystemTime::now() + Duration::from_secs(365 * 86_400);
            let nanos = next_year.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
            let name = format!("{nanos:020}-ffffffff.records.msg");
            fs::write(folder(bench, queue).join(name), 0_u32.to_be_bytes()).unwrap();
            publish(&*transport, numbered(queue, 1, 3)).await;
            let mut consumer = transport.consume(queue, 10).await.unwrap();
            assert_eq!(take(&mut *consumer, 4).await.0, [0, 1, 2, 3]);
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_comes_late_is_not_missed() {
    with_bench(|bench| {
        Box::pin(async move {
            let transport = bench.open();
            let queue = bench.declared(&*transport).await;
            publish(&*transport, numbered(queue, 1, 2)).await;
            let mut consumer = transport.consume(queue, 10).await.unwrap();
            take(&mut *consumer, 2).await;
            let late = folder(bench, queue).join("00000000000000000001-00000001.records.msg");
            fs::write(late, 0_u32.to_be_bytes()).unwrap();
            let (numbers, tag) = take(&mut *consumer, 1).await;
            assert_eq!(numbers, [0]);
            consumer.acknowledge(tag).await.unwrap();
            assert!(names(&folder(bench, queue)).is_empty());
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_not_there_is_out_of_reach() {
    let base = TempDir::new().unwrap();
    let url = format!("spool:{}", base.path().join("not-mounted").join("spool").display());
    let transport = transport::connect(&url, &Settings::default()).unwrap();
    let queue = Queue { to: ServerId::random(), from: ServerId::random(), lane: Lane::Records };
    for error in [
        transport.declare(queue).await.unwrap_err(),
        transport.publish(numbered(queue, 0, 1)).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Unreachable, "{error:?}");
        assert!(error.to_string().contains("not-mounted"), "{error}");
    }
    assert!(!base.path().join("not-mounted").exists(), "and is not made by us");
    assert_eq!(
        transport::connect("spool:", &Settings::default()).err().unwrap().kind(),
        Kind::Config
    );
}

/// Not as root, who may write everywhere: then the folder is a file, which nobody can write into.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_written_names_its_path() {
    use std::os::unix::fs::PermissionsExt;
    with_bench(|bench| {
        Box::pin(async move {
            let transport = bench.open();
            let queue = bench.declared(&*transport).await;
            let folder = folder(bench, queue);
            fs::set_permissions(&folder, Permissions::from_mode(0o500)).unwrap();
            if File::create(folder.join("probe")).is_ok() {
                fs::remove_dir_all(&folder).unwrap();
                File::create(&folder).unwrap();
            }
            let outcomes = transport.publish(numbered(queue, 0, 1)).await.unwrap();
            let [Outcome::Refused(reason)] = &outcomes[..] else { panic!("{outcomes:?}") };
            assert!(reason.contains(&*folder.display().to_string()), "{reason}");
            let _ = fs::set_permissions(&folder, Permissions::from_mode(0o700));
            let _ = fs::remove_file(&folder);
        })
    })
    .await;
}

/// A file system of 256 KiB, unmounted in the end.
#[cfg(target_os = "linux")]
struct Mounted(PathBuf);

#[cfg(target_os = "linux")]
impl Mounted {
    fn small(at: &Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(at).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }
}

#[cfg(target_os = "linux")]
impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// A full disk, as the kernel plays it: a file system of a few pages.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_gives_back_what_it_took() {
    let base = TempDir::new().unwrap();
    let Some(_mounted) = Mounted::small(base.path()) else { return }; // only root may mount
    let url = format!("spool:{}", base.path().join("spool").display());
    let transport = transport::connect(&url, &Settings::default()).unwrap();
    let queue = Queue { to: ServerId::random(), from: ServerId::random(), lane: Lane::Records };
    transport.declare(queue).await.unwrap();
    let messages = (0..8).map(|_| message(queue, vec![1; 100_000])).collect();
    let outcomes = transport.publish(messages).await.unwrap();
    publish(&*transport, numbered(queue, 0, 1)).await;
    let left = names(&base.path().join("spool").join(queue.name()));
    let confirmed = outcomes.iter().filter(|outcome| **outcome == Outcome::Confirmed).count();
    assert_eq!(left.len(), confirmed + 1, "{left:?}");
    assert_eq!(confirmed, 2);
    let Outcome::Refused(reason) = &outcomes[7] else { panic!("{outcomes:?}") };
    assert!(reason.contains("disk is full") && reason.contains(&queue.name()), "{reason}");
}

/// Another process: the test binary started once more, with a role.
struct Process(Child);

impl Process {
    fn start(role: &str, bench: &Bench, queue: Queue) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["suite::transport::spool::as_another_process", "--exact", "--nocapture"])
            .env(ROLE, format!("{role}|{}|{}|{}", bench.url, queue.to, queue.from))
            .stdout(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }

    /// Waits until the process says that it is ready.
    fn ready(&mut self) {
        let lines = BufReader::new(self.0.stdout.as_mut().unwrap()).lines();
        for line in lines {
            if line.unwrap().contains("READY") {
                return;
            }
        }
        panic!("the other process ended before it was ready");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test by itself: what another process does, when it is started as one.
#[tokio::test(flavor = "multi_thread")]
async fn as_another_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let [role, url, to, from] = role.split('|').collect::<Vec<_>>().try_into().unwrap();
    let transport = transport::connect(url, &Settings::default()).unwrap();
    let queue = Queue { to: to.parse().unwrap(), from: from.parse().unwrap(), lane: Lane::Records };
    match role {
        "read" => {
            let mut consumer = transport.consume(queue, 10).await.unwrap();
            take(&mut *consumer, 2).await;
            println!("\nREADY");
            std::future::pending::<()>().await;
        }
        "publish" => {
            println!("\nREADY");
            for part in 0..20 {
                publish(&*transport, numbered(queue, 1_000 + part * 10, 10)).await;
            }
        }
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_frees_the_queue_it_read() {
    with_bench(|bench| {
        Box::pin(async move {
            let transport = bench.open();
            let queue = bench.declared(&*transport).await;
            publish(&*transport, numbered(queue, 0, 3)).await;
            let mut process = Process::start("read", bench, queue);
            process.ready();
            let mut consumer = transport.consume(queue, 10).await.unwrap();
            nothing(&mut *consumer).await;
            drop(process); // killed, as SIGKILL does
            assert_eq!(take(&mut *consumer, 3).await.0, [0, 1, 2]);
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_publish_while_one_reads() {
    with_bench(|bench| {
        Box::pin(async move {
            let transport = bench.open();
            let queue = bench.declared(&*transport).await;
            let mut process = Process::start("publish", bench, queue);
            process.ready();
            let publishing = tokio::spawn({
                let transport = transport.clone();
                async move {
                    for part in 0..20 {
                        publish(&*transport, numbered(queue, part * 10, 10)).await;
                    }
                }
            });
            let mut consumer = transport.consume(queue, 64).await.unwrap();
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..400 {
                let delivery = consumer.next(SOON).await.unwrap().expect("all 400 come");
                consumer.acknowledge(delivery.tag).await.unwrap();
                match number(&delivery.body) {
                    number @ 0..1_000 => ours.push(number),
                    number => theirs.push(number),
                }
            }
            publishing.await.unwrap();
            assert!(ours.into_iter().eq(0..200), "each writer's order");
            assert!(theirs.into_iter().eq(1_000..1_200), "each writer's order");
            nothing(&mut *consumer).await;
        })
    })
    .await;
}
