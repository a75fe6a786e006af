//! A program of Rust, linked statically: threads, files, a server on loopback, a child.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (sender, receiver) = mpsc::channel();
    let threads: Vec<_> = (0..50)
        .map(|number: u64| {
            let sender = sender.clone();
            std::thread::spawn(move || sender.send((0..=number).sum::<u64>()))
        })
        .collect();
    drop(sender);
    let sum: u64 = receiver.iter().sum();
    for thread in threads {
        thread.join().map_err(|_| "a thread panicked")??;
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let client = std::thread::spawn(move || -> std::io::Result<String> {
        let mut text = String::new();
        TcpStream::connect(address)?.read_to_string(&mut text)?;
        Ok(text)
    });
    write!(listener.accept()?.0, "{sum}")?;
    let text = client.join().map_err(|_| "the client panicked")??;
    std::fs::write("/tmp/sum", text)?;
    let output = Command::new("/bin/cat").arg("/tmp/sum").output()?;
    println!("rust {}", String::from_utf8(output.stdout)?);
    Ok(())
}
