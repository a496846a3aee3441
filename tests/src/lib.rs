//! The harness of the whole-system tests: real binaries on ports that the
//! system chooses, which end when the test does. Nothing sleeps for a fixed
//! time; everything waits for a condition, within a generous limit. [`load`]
//! keeps calling while something happens, [`forge`] makes certificates that
//! should convince nobody, [`trials`] is for promises in numbers.

pub mod backend;
pub mod cluster;
pub mod mesh;
pub mod netns;
pub mod policies;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

pub mod forge;
pub mod load;
pub mod open_loop;
pub mod outside;
pub mod pod;
pub mod ports;
pub mod replica;
pub mod resolver;
pub mod shop;
pub mod tokens;
pub mod trials;

use self::ports::Reserved;

/// The longest that any condition may take to come true. Test machines are slow and shared, and
/// patience costs nothing where it does.
const LIMIT: Duration = Duration::from_secs(120);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until `condition` gives something.
///
/// # Panics
/// If it gives nothing in time.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begun.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        thread::sleep(LOOK);
    }
}

/// The path of one of the workspace's binaries, which are built at the first call, in the
/// profile of the test.
///
/// # Panics
/// If they do not build.
pub fn binary(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        // Tests lie in TARGET/PROFILE/deps, programs in TARGET/PROFILE.
        let test = std::env::current_exe().expect("a test knows where it is");
        let mut directory = test.parent().expect("it is not the root");
        if directory.ends_with("deps") {
            directory = directory.parent().expect("it is not in the root");
        }
        let directory = directory.to_owned();
        let profile = match directory.file_name().and_then(OsStr::to_str) {
            None | Some("debug") => "dev",
            Some(profile) => profile,
        };
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--profile", profile])
            .args(["-p", "heddle", "-p", "heddle-control-plane", "-p", "heddle-sidecar"])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .status()
            .expect("cargo runs");
        assert!(status.success(), "the binaries do not build");
        directory
    });
    directory.join(name)
}

/// A running program whose standard output and standard error are read.
pub struct Process {
    child: Child,
    printed: Lines,
    lines: Lines,
}

/// What a program has written so far to one of them.
type Lines = Arc<Mutex<Vec<String>>>;

fn follow(output: impl Read + Send + 'static) -> Lines {
    let lines = Lines::default();
    let sink = lines.clone();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            sink.lock().expect("nobody panics with it").push(line);
        }
    });
    lines
}

impl Process {
    /// Starts a command.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let printed = follow(child.stdout.take().expect("it is piped"));
        let lines = follow(child.stderr.take().expect("it is piped"));
        Self { child, printed, lines }
    }

    /// The lines that it has written to standard output.
    ///
    /// # Panics
    /// If a reader panicked.
    pub fn printed(&self) -> Vec<String> {
        self.printed.lock().expect("nobody panics with it").clone()
    }

    /// What it has written to standard error.
    pub fn log(&self) -> String {
        self.lines.lock().expect("nobody panics with it").join("\n")
    }

    /// Waits for a line with `text` in it.
    pub fn said(&self, text: &str) -> String {
        eventually(text, || {
            self.lines.lock().expect("nobody panics with it").iter().find(|line| line.contains(text)).cloned()
        })
    }

    /// The address that it said it listens on for `role`.
    ///
    /// # Panics
    /// If the line is not as documented.
    pub fn listening(&self, role: &str) -> SocketAddr {
        let line = self.said(&format!("\"role\":\"{role}\""));
        let line: serde_json::Value = serde_json::from_str(&line).expect("the line is JSON");
        line["addr"].as_str().and_then(|addr| addr.parse().ok()).expect("it has an address")
    }

    /// Asks it to end and waits until it has.
    ///
    /// # Panics
    /// If it does not.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.ended()
    }

    /// Sends it a signal by this name.
    ///
    /// # Panics
    /// If it has ended.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let told = Command::new("kill").args(["-s", name, &pid]).status().expect("kill runs");
        assert!(told.success(), "it has ended before:\n{}", self.log());
    }

    /// Waits until it has ended by itself.
    pub fn ended(&mut self) -> ExitStatus {
        eventually("the program ends", || self.child.try_wait().expect("it is our child"))
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    #[allow(clippy::print_stderr)]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- {} said:\n{}", self.child.id(), self.log());
        }
        self.kill();
    }
}

/// A control plane with everything it keeps.
pub struct ControlPlane {
    process: Process,
    directory: tempfile::TempDir,
    address: SocketAddr,
    args: &'static [&'static str],
    /// Keeps the address while nobody listens there.
    reserved: Option<Reserved>,
}

impl ControlPlane {
    /// Starts one with an empty folder of manifests.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with further flags.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start_with(args: &'static [&'static str]) -> Self {
        Self::start_at("127.0.0.1:0", args)
    }

    /// The same where others reach it.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start_at(listen: &str, args: &'static [&'static str]) -> Self {
        let directory = tempfile::tempdir().expect("there is room for temporary files");
        std::fs::create_dir(directory.path().join("manifests")).expect("there is room");
        let process = Self::process(directory.path(), listen, args);
        let address = process.listening("discovery");
        Self { process, directory, address, args, reserved: None }
    }

    /// Where its admin listener is.
    pub fn admin(&self) -> SocketAddr {
        self.process.listening("admin")
    }

    /// What `path` of its admin listener shows.
    ///
    /// # Panics
    /// If it shows no JSON.
    pub fn shows(&self, path: &str) -> serde_json::Value {
        let (status, body) = get(self.admin(), "localhost", path).expect("the control plane answers");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("it is JSON")
    }

    /// Waits until `count` workloads of `service` are ready and none of them drains.
    pub fn workloads(&self, service: &str, count: usize) {
        eventually(&format!("{count} workloads of {service} are ready"), || {
            let shown = self.shows("/workloads");
            let of_service = shown["workloads"].as_array()?.iter().filter(|w| w["service"] == service);
            let ready = of_service.filter(|w| w["ready"] == true && w["draining"] == false).count();
            (ready == count).then_some(())
        });
    }

    /// Puts a file into the folder of manifests, whole at once.
    ///
    /// # Panics
    /// If there is no room.
    pub fn apply(&self, file: &str, text: &str) {
        let written = self.directory.path().join(file);
        std::fs::write(&written, text).expect("there is room");
        std::fs::rename(written, self.manifests().join(file)).expect("both are on one file system");
    }

    /// The file with its certificate authority's certificate and key.
    pub fn authority(&self) -> PathBuf {
        self.directory.path().join("data/ca.pem")
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The folder of manifests that it reads.
    pub fn manifests(&self) -> PathBuf {
        self.directory.path().join("manifests")
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.process.kill();
        self.reserved.get_or_insert_with(|| Reserved::at(self.address));
    }

    /// Starts it again at the same address with what it had kept.
    pub fn restart(&mut self) {
        self.kill();
        self.process = Self::process(self.directory.path(), &self.address.to_string(), self.args);
        self.process.listening("discovery");
    }

    /// A join token for a service of namespace `default`.
    ///
    /// # Panics
    /// If none is minted.
    pub fn token(&self, service: &str) -> PathBuf {
        let output = self
            .command("heddle-control-plane")
            .args(["token", "--service", service, "--data-dir"])
            .arg(self.directory.path().join("data"))
            .output()
            .expect("the command runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = self.directory.path().join(format!("{service}.token"));
        std::fs::write(&path, output.stdout).expect("there is room");
        path
    }

    /// Starts the sidecar of a service beside it, as the same user.
    pub fn sidecar<A: AsRef<OsStr>>(&self, service: &str, args: impl IntoIterator<Item = A>) -> Process {
        self.sidecar_with(&[], service, args)
    }

    /// The same with variables in its environment.
    pub fn sidecar_with<A: AsRef<OsStr>>(
        &self,
        environment: &[(&str, &str)],
        service: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Process {
        let mut command = self.command("heddle-sidecar");
        command.envs(environment.iter().copied());
        let fixed = ["--outbound", "127.0.0.1:0", "--inbound", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        command.args(["proxy", "--service", service, "--control-plane", &self.address.to_string()]);
        Process::start(command.args(fixed).args(args))
    }

    fn command(&self, name: &str) -> Command {
        command(self.directory.path(), name)
    }

    fn process(directory: &Path, listen: &str, args: &[&str]) -> Process {
        let mut command = command(directory, "heddle-control-plane");
        let source = format!("dir:{}", directory.join("manifests").display());
        command.args(["--listen", listen, "--admin", "127.0.0.1:0", "--source", &source, "--data-dir"]);
        Process::start(command.arg(directory.join("data")).args(args))
    }
}

/// A binary of the workspace that finds only the runtime files in `directory`.
fn command(directory: &Path, name: &str) -> Command {
    let mut command = Command::new(binary(name));
    command.env("XDG_RUNTIME_DIR", directory).env_remove("RUST_BACKTRACE");
    command
}

/// A plain HTTP/1 server.
pub struct App {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    /// The whole response to a request with the given head.
    answer: Box<dyn Fn(&str) -> String + Send + Sync>,
    stopped: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl App {
    /// Starts one that answers every request with one text, on a free port of
    /// the loopback. It ends with the test's process unless stopped before.
    ///
    /// # Panics
    /// If there is no port.
    pub fn start(answer: &'static str) -> Self {
        Self::answering(move |_| response(answer))
    }

    /// Starts one that answers what `answer` makes of a request's head.
    ///
    /// # Panics
    /// If there is no port.
    pub fn answering(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self::listening(TcpListener::bind("127.0.0.1:0").expect("there is a free port"), answer)
    }

    /// The same on a listener of the caller's.
    ///
    /// # Panics
    /// If that is no listener.
    pub fn listening(listener: TcpListener, answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().expect("it is bound");
        let shared =
            Shared { answer: Box::new(answer), stopped: AtomicBool::new(false), open: Mutex::default() };
        let shared = Arc::new(shared);
        let serving = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let Ok(open) = stream.try_clone() else { return };
                serving.open.lock().expect("nobody panics with it").push(open);
                if serving.stopped.load(Ordering::SeqCst) {
                    return serving.close();
                }
                let shared = serving.clone();
                thread::spawn(move || shared.serve(stream));
            }
        });
        Self { address, shared }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Closes its listener and everything that is open, as its end would.
    pub fn stop(self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.shared.close();
        // Wakes the thread that accepts, which closes the listener.
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut writer = stream.try_clone().ok()?;
        let mut lines = BufReader::new(stream).lines();
        loop {
            let mut head = String::new();
            loop {
                let line = lines.next()?.ok()?;
                if line.is_empty() {
                    break;
                }
                head.push_str(&line);
                head.push('\n');
            }
            writer.write_all((self.answer)(&head).as_bytes()).ok()?;
        }
    }

    fn close(&self) {
        for stream in self.open.lock().expect("nobody panics with it").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A response with status 200 and this body.
pub fn response(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// A GET with the connection closed afterwards: the status and the body.
/// `None` if there was no complete answer.
pub fn get(at: SocketAddr, host: &str, path: &str) -> Option<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    let answer = exchange(at, &request)?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// Everything that comes back for `request`, which must make the server close the connection.
pub fn exchange(at: SocketAddr, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(at).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
