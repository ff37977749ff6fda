//! A TCP connection made inside a network namespace, copied outside of it.

use super::{Error, Result, backend::Duplex};
use nix::sched::{CloneFlags, setns};
use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdTcpStream, ToSocketAddrs},
    path::Path,
};
use tokio::{net::TcpStream, sync::oneshot};

/// Connects `stream` to `localhost:port` in the namespace at `netns_path` until both directions
/// have ended: one that ends closes that half only.
pub(super) async fn port_forward(
    id: &str,
    netns_path: &Path,
    port: u16,
    mut stream: Box<dyn Duplex>,
) -> Result<()> {
    let context = || format!("port forward into network namespace \"{}\"", netns_path.display());
    let work = async {
        let connection = connect(netns_path, port).await.map_err(|error| {
            let what = format!("failed to connect to localhost:{port} inside namespace {id}");
            Error::System(error).context(what)
        })?;
        let mut connection = connection;
        tokio::io::copy_bidirectional(&mut stream, &mut connection).await.map_err(Error::System)?;
        Ok(())
    };
    work.await.map_err(|error: Error| error.context(context()))
}

async fn connect(netns_path: &Path, port: u16) -> io::Result<TcpStream> {
    let namespace = File::open(netns_path)?;
    let (sender, receiver) = oneshot::channel();
    // A thread of its own, which stays in the namespace for its short life.
    std::thread::Builder::new().name("pintle-netns".into()).spawn(move || {
        let _ = sender.send(connect_inside(&namespace, port));
    })?;
    let connection = receiver.await.map_err(|_| io::Error::other("the connecting thread ended"))??;
    connection.set_nonblocking(true)?;
    TcpStream::from_std(connection)
}

fn connect_inside(namespace: &File, port: u16) -> io::Result<StdTcpStream> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let mut addresses: Vec<SocketAddr> =
        ("localhost", port).to_socket_addrs().map(Iterator::collect).unwrap_or_default();
    for ip in [IpAddr::from(Ipv6Addr::LOCALHOST), IpAddr::from(Ipv4Addr::LOCALHOST)] {
        if !addresses.iter().any(|a| a.ip() == ip) {
            addresses.push(SocketAddr::new(ip, port));
        }
    }
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match StdTcpStream::connect(address) {
            Ok(connection) => return Ok(connection),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn port_forward_half_closes() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            peer.read_to_end(&mut request).await.unwrap();
            // An answer that comes well after the request has ended.
            tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
            peer.write_all(&request).await.unwrap();
        });
        let (mut client, inner) = tokio::io::duplex(1024);
        let path = Path::new("/proc/self/ns/net");
        let forward = tokio::spawn(port_forward("id", path, port, Box::new(inner)));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "question");
        forward.await.unwrap().unwrap();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn port_forward_errors_say_where() {
        let (_client, inner) = tokio::io::duplex(1024);
        let error = port_forward("id", Path::new("/nowhere"), 1, Box::new(inner)).await.unwrap_err();
        let text = error.to_string();
        let start = "port forward into network namespace \"/nowhere\": \
                     failed to connect to localhost:1 inside namespace id: ";
        assert!(text.starts_with(start), "{text}");
    }
}
