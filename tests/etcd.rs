//! The processes' store in etcd: a real server (`etcd`, Debian's `etcd-server`), on this machine.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use safejax::Plugin;
use safejax::processes::{EtcdStore, KeyValueStore, Processes};
use safejax_simulator::{Config, Simulator};

struct Server {
    process: Child,
    address: String,
    _data: tempfile::TempDir,
}

impl Server {
    fn start() -> Server {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (clients, peers) = (free(), free());
        let [clients, peers] =
            [&clients, &peers].map(|port| format!("http://{}", port.local_addr().unwrap()));
        let data = tempfile::tempdir().unwrap();
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(data.path())
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is needed for this test (Debian's etcd-server)");
        Server { process, address: clients, _data: data }
    }

    fn store(&self, job: &str) -> EtcdStore {
        EtcdStore::connect(&[&self.address], job).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn processes_meet_in_etcd() {
    let server = Server::start();
    let store = server.store("job");
    assert_eq!(store.try_get("a").unwrap(), None);
    store.put("a", b"\0one").unwrap();
    assert_eq!(store.get("a", Duration::ZERO).unwrap().unwrap(), b"\0one");
    assert!(store.put("a", b"two").unwrap_err().to_string().contains("`a` already"));
    assert_eq!(server.store("another").try_get("a").unwrap(), None);
    store.delete("a").unwrap();
    assert_eq!(store.get("a", Duration::from_millis(50)).unwrap(), None);

    let simulator = Simulator::new(Config { devices: 1, ..Config::default() });
    let plugin = Plugin::open(simulator.path()).unwrap();
    std::thread::scope(|scope| {
        for index in [0, 1] {
            let (store, plugin) = (server.store("job"), plugin.clone());
            scope.spawn(move || {
                let processes = Processes::new(index, 2, store).unwrap();
                assert_eq!(plugin.client().processes(&processes).build().unwrap().devices().len(), 2);
            });
        }
    });
    assert_eq!(simulator.report().exchanged_keys, 2);

    // From a thread of a runtime, as a server's.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = server.store("in a runtime");
        store.put("b", b"").unwrap();
    });
    drop(server);
    let nobody = EtcdStore::connect(&["http://127.0.0.1:1"], "job").err().unwrap().to_string();
    assert!(nobody.starts_with("etcd at http://127.0.0.1:1: "), "{nobody}");
    assert!(store.try_get("a").is_err());
}
