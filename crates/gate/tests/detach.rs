//! What is left when a sandbox is detached. Alone in its process: it counts descriptors.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod lab;

use std::io::ErrorKind::ConnectionRefused;

use policy::PolicySpec;

use crate::lab::kind;

const GITHUB: &str = "140.82.112.5";

#[test]
fn a_detached_sandbox_leaves_nothing_and_reaches_nothing() {
    lab::run(|lab| async move {
        let keeper = lab.allowing(&["api.github.com"]).await;
        // The upstream resolver keeps its sockets.
        keeper.lookup("api.github.com").await;
        let before = descriptors();
        let sandbox = lab.allowing(&["api.github.com"]).await;
        // The resolver takes a moment to close what the proof of the rules connected to it.
        back_to(before + 15).await;
        sandbox.lookup("api.github.com").await;
        let inside = sandbox.namespace();
        sandbox.0.detach().await;
        sandbox.0.detach().await;
        drop(sandbox);
        let refused = tokio::task::spawn_blocking(move || {
            let to = "140.82.112.5:80".parse().unwrap();
            inside.run(|| lab::connect(to)).unwrap()
        });
        assert_eq!(kind(refused.await.unwrap()), ConnectionRefused);
        assert_eq!(lab.seen_at(GITHUB), 0);
        back_to(before).await;
        // The twin with a wire: as the first one that has one brings up the uplink, there is one before.
        let wired = lab.attach(&PolicySpec::default()).await;
        let before = descriptors();
        let other = lab.attach(&PolicySpec::default()).await;
        other.get("93.184.216.34:80", "example.com").await.unwrap();
        other.0.detach().await;
        drop(other);
        back_to(before).await;
        drop((keeper, wired));
    });
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Waits until only so many descriptors are open: the world's ends of closed connections, which are in this process
/// too, go a little later.
async fn back_to(before: usize) {
    let gone = async {
        while descriptors() > before {
            tokio::task::yield_now().await;
        }
    };
    let in_time = tokio::time::timeout(lab::PATIENCE, gone).await;
    assert!(in_time.is_ok(), "{} descriptors instead of {before}", descriptors());
}
