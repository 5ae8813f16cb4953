//! The command line's words. A contract: tests outside the project use it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use uuid::Uuid;

use crate::state::State;

/// Keeps a tree of databases in step: every committed transaction of one server reaches all the
/// others.
#[derive(Debug, Parser)]
#[command(name = "branchline", version, arg_required_else_help = true, propagate_version = true)]
#[command(
    after_help = "Exit status: 0 done; 1 failed; 2 usage or configuration; 3 something is held or differs; 4 database or broker out of reach."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The configuration [default: ./branchline.toml, when it is there]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The database: postgres://… or sqlite:PATH
    #[arg(long, global = true, value_name = "URL", hide_env_values = true)]
    pub(crate) database_url: Option<String>,
    /// The broker of the links to children: amqp://…, amqps://… or spool:DIR
    #[arg(long, global = true, value_name = "URL", hide_env_values = true)]
    pub(crate) broker_url: Option<String>,
    /// Print for programs: one JSON object; lists one object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say more on standard error; twice: much more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// The form of the log on standard error
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, hide_possible_values = true, value_name = "text|json")]
    pub(crate) log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make the sync tables and this server's identity
    Init(Init),
    /// Put tables under capture, or bring their capture up to date
    Track(Track),
    /// Take tables out of capture
    Untrack(Untrack),
    /// On the parent: invite a child; prints one token
    Invite(Invite),
    /// On the child: become a child of the server that made the token
    Join(Join),
    /// Exchange with all neighbours until there is nothing more to move
    Sync(Sync),
    /// Exchange with all neighbours, for ever
    Worker(Worker),
    /// Show what is to go out, what came in and what is held
    Status,
    /// Show or change the neighbours
    Servers {
        #[command(subcommand)]
        command: Option<Servers>,
    },
    /// Show records, or send them again
    Records {
        #[command(subcommand)]
        command: Option<Records>,
        #[command(flatten)]
        list: Select,
    },
    /// Show what came in
    Imports {
        #[command(subcommand)]
        command: Option<Imports>,
        #[command(flatten)]
        list: Select,
    },
    /// Show what cannot go into the tables yet, try it again, or give it up
    Held {
        #[command(subcommand)]
        command: Option<Held>,
    },
    /// Show or change which class goes to whom
    Class {
        #[command(subcommand)]
        command: Class,
    },
    /// Delete what is old and done with
    Cleanup(Cleanup),
    /// One page: what is captured, what is not, and what needs attention
    Check,
    /// Show what operators did
    Audit {
        /// The newest so many
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: u32,
    },
    /// Show exchanges that failed
    Transmissions {
        /// The newest so many
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: u32,
    },
    /// See a tree of seven servers at work, in a folder that goes away again
    Demo(Demo),

    /// Edits that met without knowing of each other, and turning one round
    #[command(args_conflicts_with_subcommands = true)]
    Conflicts {
        #[command(subcommand)]
        command: Option<Conflicts>,
        #[command(flatten)]
        list: ConflictsList,
    },
    #[command(hide = true)]
    Verify(Later),
    #[command(hide = true)]
    Export(Later),
    #[command(hide = true)]
    Import(Later),
    #[command(hide = true)]
    Bench(Later),
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// What this server calls itself
    #[arg(long, value_name = "NAME")]
    pub(crate) nickname: String,
    /// This database is a copy: become another server, without neighbours
    #[arg(long)]
    pub(crate) new_identity: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Track {
    /// The tables; none: those that are tracked already
    #[arg(value_name = "TABLE", conflicts_with = "all")]
    pub(crate) tables: Vec<String>,
    /// All tables, but those that the default rules keep back
    #[arg(long)]
    pub(crate) all: bool,
    /// The columns that identify a row of a table; may be repeated
    #[arg(long, value_name = "TABLE=COLUMN,…")]
    pub(crate) key: Vec<String>,
    /// Add and fill a uuid column where nothing identifies a row
    #[arg(long)]
    pub(crate) add_uuid: bool,
    /// Take integer columns that look like undeclared references as plain values
    #[arg(long)]
    pub(crate) assume_plain: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Untrack {
    /// The tables
    #[arg(value_name = "TABLE", conflicts_with = "all", required_unless_present = "all")]
    pub(crate) tables: Vec<String>,
    /// All tracked tables
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Invite {
    /// What the child is called here until it says itself
    pub(crate) nickname: String,
    /// Send the child all data
    #[arg(long, conflicts_with = "no_load")]
    pub(crate) load: bool,
    /// The child starts with a copy of this database taken after this command, or with none
    #[arg(long)]
    pub(crate) no_load: bool,
    /// How long the token is good
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = humantime::parse_duration)]
    pub(crate) expires: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// What `branchline invite` printed on the parent; `-` reads it from standard input
    pub(crate) token: String,
    /// Leave the present parent
    #[arg(long = "move")]
    pub(crate) moving: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Sync {
    /// Stop when nothing has moved for this long
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub(crate) idle: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Worker {
    /// Serve /metrics (Prometheus) and /health here
    #[arg(long, value_name = "ADDR")]
    pub(crate) metrics: Option<SocketAddr>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Servers {
    /// Show the neighbours
    List,
    /// Forget a neighbour, and what waits for it
    Evict {
        /// Nickname or uuid
        server: String,
    },
    /// Neither send to a neighbour nor read from it; records wait
    Disable {
        /// Nickname or uuid
        server: String,
    },
    /// Resume the exchange with a neighbour
    Enable {
        /// Nickname or uuid
        server: String,
    },
}

#[derive(Debug, Args, Clone)]
pub(crate) struct Select {
    /// Only those in this state
    #[arg(long, value_name = "STATE", ignore_case = true, value_parser = clap::builder::PossibleValuesParser::new(State::ALL.map(State::as_str)), hide_possible_values = true)]
    pub(crate) state: Option<String>,
    /// Only those to (of imports: from) this neighbour
    #[arg(long, value_name = "NICKNAME")]
    pub(crate) server: Option<String>,
    /// The newest so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) limit: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Records {
    /// Show the newest records
    List(Select),
    /// Show one record
    Show {
        /// Its uuid, on this hop or its original
        uuid: Uuid,
    },
    /// Send records again, from the start
    Reset {
        /// Its uuid; without one: all that are FAILED_AND_STOPPED
        uuid: Option<Uuid>,
        /// Only to this neighbour
        #[arg(long, value_name = "NICKNAME")]
        server: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Imports {
    /// Show the newest imports
    List(Select),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Conflicts {
    /// Show those that nobody dealt with, the newest first
    List(ConflictsList),
    /// Show one, with both values
    Show {
        /// Its number
        id: i64,
    },
    /// Keep one side, for the whole tree
    Resolve {
        /// Its number
        id: i64,
        /// Which side is to count
        #[arg(long, value_enum)]
        keep: KeepSide,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ConflictsList {
    /// Those that are resolved too
    #[arg(long)]
    pub(crate) all: bool,
    /// Of this class only
    #[arg(long, value_name = "CLASS")]
    pub(crate) class: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub(crate) limit: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeepSide {
    /// What counts already
    Winner,
    /// What lost
    Loser,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Held {
    /// Show what is held, the oldest first
    List {
        /// So many at the most
        #[arg(long, value_name = "N", default_value_t = 1_000)]
        limit: u32,
    },
    /// Show what is in one, and what it waits for
    Show {
        /// Its number
        id: i64,
        /// The rows' values as well
        #[arg(long)]
        values: bool,
    },
    /// Try it again at once
    Retry {
        /// The numbers
        #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<i64>,
        /// All that is held
        #[arg(long)]
        all: bool,
    },
    /// Give one up: it does not go in here, and its sender is told
    Drop {
        /// Its number
        id: i64,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Class {
    /// Show the rules
    List {
        /// Of this neighbour [default: all]
        #[arg(long, value_name = "NICKNAME")]
        server: Option<String>,
    },
    /// Keep classes back
    Exclude(ClassChange),
    /// Let classes pass
    Include(ClassChange),
    /// Copy a default rule to the neighbours there are
    Propagate {
        /// The default's name
        #[arg(required = true)]
        names: Vec<String>,
        /// Only to this neighbour
        #[arg(long, value_name = "NICKNAME")]
        server: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ClassChange {
    /// Classes, or prefixes that end in `*`
    #[arg(required = true, value_name = "CLASS")]
    pub(crate) names: Vec<String>,
    /// For this neighbour [default: for those that join later]
    #[arg(long, value_name = "NICKNAME")]
    pub(crate) server: Option<String>,
    /// Only what is sent
    #[arg(long)]
    pub(crate) send: bool,
    /// Only what is received
    #[arg(long)]
    pub(crate) receive: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Cleanup {
    /// What is at least this old [default: `cleanup_age` of the configuration, 28 days]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) age: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Keep the folder or the databases, and say where they are
    #[arg(long)]
    pub(crate) keep: bool,
    /// Repeat the run that had this seed
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

/// A command of a later release: whatever follows it is no usage error.
#[derive(Debug, Args)]
pub(crate) struct Later {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub(crate) rest: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_commands_of_the_contract_parse() {
        let uuid = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
        for line in [
            "init --nickname root --new-identity",
            "--config x.toml --json track a b --key a=b,c --key b=x --add-uuid --assume-plain",
            "track --all",
            "untrack --all --json",
            "invite clinic --no-load --expires 7d",
            "join TOKEN --move",
            "sync --idle 500ms",
            "worker --metrics 127.0.0.1:9000",
            "status --json",
            "servers",
            "servers list",
            "servers evict x",
            "records --state sent --server x",
            "records list",
            &format!("records show {uuid}"),
            &format!("records reset {uuid} --server x"),
            "records reset",
            "imports list",
            "class list --server x",
            "class exclude obs person* --server x --send",
            "class propagate obs",
            "cleanup",
            "check",
            "demo --keep --seed 3 --database-url postgres://h/x --broker-url amqp://h",
            "verify --repair",
            "held",
            "held list",
            "held show 3 --values",
            "held retry 3 4",
            "held retry --all",
            "held drop 3 --yes",
            "export x.bundle",
        ] {
            let words = std::iter::once("branchline").chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "track a --all",
            "untrack",
            "invite x --load --no-load",
            "class exclude",
            "held retry",
            "held retry 1 --all",
            "nothing",
        ] {
            let words = std::iter::once("branchline").chain(line.split(' '));
            assert_eq!(Cli::try_parse_from(words).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
