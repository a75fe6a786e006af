//! What `kubectl` sends for a person: the channels of a websocket.

use std::net::TcpStream;

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::http::HeaderValue;
use tungstenite::{Message, WebSocket};

use super::line::Line;

/// The streaming protocol of CRI by websocket; its channels are the first byte of each message
/// (`k8s.io/cri-streaming/pkg/streaming/remotecommand`).
const PROTOCOL: &str = "v4.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// A connection to the kubelet's streaming server, which is containerd's here.
pub(super) struct Channels {
    socket: WebSocket<TcpStream>,
    code: Option<i32>,
}

impl Channels {
    /// Connects to what an answer to CRI names.
    pub(super) fn open(url: &str) -> Self {
        let url = url.replacen("http://", "ws://", 1);
        let mut request = url.as_str().into_client_request().expect("a URL");
        let mut header = |name, value| {
            let value = HeaderValue::from_static(value);
            request.headers_mut().insert(name, value);
        };
        header("Sec-WebSocket-Protocol", PROTOCOL);
        // Go's server wants one.
        header("Origin", "http://localhost");
        let uri = request.uri();
        let (host, port) = (uri.host().expect("a host"), uri.port_u16().expect("a port"));
        let stream = TcpStream::connect((host, port)).expect("connect");
        let (socket, _) = tungstenite::client(request, stream).expect("speak the protocol");
        socket.get_ref().set_nonblocking(true).expect("never wait");
        Self { socket, code: None }
    }

    fn send(&mut self, channel: u8, data: &[u8]) {
        let message = [&[channel], data].concat();
        let sent = self.socket.send(Message::Binary(message.into()));
        sent.expect("send");
    }

    /// What the error channel says of the end (`metav1.Status`).
    fn end_of(status: &[u8]) -> i32 {
        let status: Value = serde_json::from_slice(status).expect("a status");
        if status["status"] == "Success" {
            return 0;
        }
        let code = status["details"]["causes"][0]["message"].as_str();
        let code = code.and_then(|code| code.parse().ok());
        code.unwrap_or_else(|| panic!("no exit code: {status}"))
    }
}

impl Line for Channels {
    fn types(&mut self, text: &[u8]) {
        self.send(STDIN, text);
    }

    fn resize(&mut self, [rows, columns]: [u16; 2]) {
        let size = json!({ "Width": columns, "Height": rows }).to_string();
        self.send(RESIZE, size.as_bytes());
    }

    fn read(&mut self) -> String {
        let mut text = String::new();
        while let Ok(message) = self.socket.read() {
            match message.into_data().split_first() {
                Some((&STDOUT, data)) => text.push_str(&String::from_utf8_lossy(data)),
                Some((&ERROR, status)) if self.code.is_none() => {
                    self.code = Some(Self::end_of(status));
                }
                _ => {}
            }
        }
        text
    }

    fn code(&mut self) -> Option<i32> {
        self.code
    }
}
