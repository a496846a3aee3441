//! Runs a test cluster until its input ends or it is interrupted, and says how
//! to use it: `cluster [NODES]`.
#![allow(clippy::print_stdout, reason = "what it says is for the terminal")]

use std::io;

use heddle_tests::cluster::{Cluster, Settings, of_heddle};

fn main() {
    let nodes = std::env::args().nth(1).and_then(|number| number.parse().ok()).unwrap_or(1);
    let settings = Settings { nodes, images: of_heddle(), ..Settings::default() };
    let Some(cluster) = Cluster::start_with(&settings) else { return };
    println!("export KUBECONFIG={}", cluster.kubeconfig().display());
    println!(
        "alias kubectl='nsenter -t {} -n -m -p {}'",
        cluster.process(),
        cluster.program("kubectl").display()
    );
    println!("# a shell inside: nsenter -t {} -n -m -p sh", cluster.process());
    println!("# logs: /proc/{}/root{}/*.log", cluster.process(), cluster.directory().display());
    println!("# Enter or Ctrl-C ends it");
    let _ = io::stdin().read_line(&mut String::new());
}
