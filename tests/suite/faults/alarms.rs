//! A person is told once, by a command and a webhook, whatever restarts in between.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

use super::held::{refuse, refuse_no_more};
use crate::suite::tree::clinic::{self, admit};
use crate::support::tree::{POSTGRES_AMQP, SQLITE_SPOOL, Tree};

const HELD: i32 = 3;

/// Takes POST requests; their bodies come out of the receiver.
fn webhook() -> (String, mpsc::Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/alarm?from=test", listener.local_addr().unwrap());
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
            let body = loop {
                let count = stream.read(&mut buffer).unwrap();
                bytes.extend(&buffer[..count]);
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
                if body.len() >= length.unwrap().parse::<usize>().unwrap() {
                    assert!(head.starts_with("POST /alarm?from=test HTTP/1.1"), "{head}");
                    break body.to_owned();
                }
            };
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
            if send.send(serde_json::from_str(&body).unwrap()).is_err() {
                return;
            }
        }
    });
    (address, receive)
}

#[test]
fn a_held_record_is_told_once_by_command_and_webhook_over_all_tries_and_restarts() {
    for mix in [POSTGRES_AMQP, SQLITE_SPOOL] {
        let mut tree = Tree::unconnected(mix, "", clinic::database);
        tree.connect(&["--all"]);
        let (address, told) = webhook();
        // A program of one's own, whose arguments have blanks and what a shell would run.
        let script = tree.parent.dir().join("tell me.sh");
        let log = tree.parent.dir().join("alarms.log");
        std::fs::write(
            &script,
            "#!/bin/sh\n{ echo \"$BRANCHLINE_ALARM|$1|$2\"; cat; echo; } >> alarms.log\n",
        )
        .unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, mode).unwrap();
        let config = std::fs::read_to_string(tree.parent.dir().join("branchline.toml")).unwrap();
        let settings = format!(
            "{config}\nretry_after = \"1ms\"\nretries_max = 3\nalarm_webhook = \"{address}\"\n\
             alarm_command = \"\"\"'{}' 'the ward' $(touch_nothing)\"\"\"\n",
            script.display()
        );
        std::fs::write(tree.parent.dir().join("branchline.toml"), settings).unwrap();

        refuse(&tree.parent, "poison");
        admit(&tree.child, "p1", "poison");
        tree.child.sync();
        let sync = || tree.parent.run(&["sync", "--idle", "300ms"]).fails_with(HELD, &["held"]);
        while tree.parent.count("SELECT count(*) FROM @sync_held WHERE retry_count = 3") == 0 {
            sync();
        }
        sync();
        // That a trigger was made beside ours is told as well, and is not the subject.
        let next = || loop {
            let alarm = told.recv_timeout(Duration::from_secs(20)).unwrap();
            if alarm["alarm"] != "capture" {
                return alarm;
            }
        };
        // What is given up before anybody looks is told as that alone.
        let mut alarms = vec![next()];
        if alarms[0]["alarm"] == "held" {
            alarms.push(next());
        }
        for alarm in &alarms {
            assert_eq!(alarm["kind"], "REFUSED");
            assert_eq!(alarm["from"], "child");
            assert_eq!(alarm["server"]["nickname"], "parent");
            assert!(alarm["text"].as_str().unwrap().contains("wanted"), "{alarm}");
            assert!(!alarm.to_string().contains("poison"), "no row's values: {alarm}");
        }
        let kinds: Vec<_> = alarms.iter().map(|alarm| alarm["alarm"].as_str().unwrap()).collect();
        assert_eq!(kinds.last(), Some(&"stopped"));
        assert!(told.try_iter().all(|alarm| alarm["alarm"] == "capture"), "once each");
        let text = std::fs::read_to_string(&log).unwrap();
        let heads: Vec<_> = text
            .lines()
            .filter(|line| line.contains('|') && !line.starts_with("capture"))
            .collect();
        let rest = "|the ward|$(touch_nothing)";
        assert_eq!(heads, kinds.iter().map(|kind| format!("{kind}{rest}")).collect::<Vec<_>>());

        refuse_no_more(&tree.parent);
        tree.parent.done(&["held", "retry", "--all"]);
        tree.parent.sync();
        assert!(told.try_iter().all(|alarm| alarm["alarm"] == "capture"));
    }
}
