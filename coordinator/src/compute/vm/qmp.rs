//! QEMU's control channel.
//!
//! Owns one connection. Does not know what commands mean. Cancel safety: a command whose answer is not waited for leaves the
//! connection unusable; callers drop it then.
//! Limits: [`LINE_BYTES_MAX`] per message, [`ANSWER_MAX`] per command.
//! Format: QEMU Machine Protocol, docs/interop/qmp-spec.txt: JSON objects, one per line here.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

const LINE_BYTES_MAX: u64 = 4 << 20;
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// A connection that takes commands.
#[derive(Debug)]
pub struct Qmp {
    from: BufReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
}

impl Qmp {
    /// Connects, and leaves negotiation.
    ///
    /// # Errors
    /// Nobody listens, or not QEMU. The text says which.
    pub async fn connect(socket: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(socket).await.map_err(|error| error.to_string())?;
        let (from, to) = stream.into_split();
        let mut qmp = Self { from: BufReader::new(from), to };
        let greeting =
            timeout(ANSWER_MAX, qmp.message()).await.map_err(|_| "it says nothing".to_owned())??;
        if greeting.get("QMP").is_none() {
            return Err("it does not greet as QEMU does".to_owned());
        }
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs a command; what it returns.
    ///
    /// # Errors
    /// QEMU refuses (its words), or the connection is lost.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let mut line = json!({"execute": command, "arguments": arguments}).to_string();
        line.push('\n');
        self.to.write_all(line.as_bytes()).await.map_err(|error| error.to_string())?;
        let answer = async {
            loop {
                let mut message = self.message().await?;
                if let Some(value) = message.get_mut("return") {
                    return Ok(value.take());
                }
                if let Some(error) = message.get("error") {
                    let text = error.get("desc").and_then(Value::as_str).unwrap_or("an error without words");
                    return Err(format!("{command}: {text}"));
                }
                // Events are not waited for: callers ask.
            }
        };
        timeout(ANSWER_MAX, answer)
            .await
            .map_err(|_| format!("{command}: no answer within {} s", ANSWER_MAX.as_secs()))?
    }

    async fn message(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        let read = (&mut self.from).take(LINE_BYTES_MAX).read_line(&mut line).await;
        match read {
            Ok(0) => Err("the connection is closed".to_owned()),
            Ok(_) => serde_json::from_str(&line).map_err(|error| format!("what it says is no JSON: {error}")),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::{
        io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
        net::UnixListener,
    };

    use super::Qmp;

    #[tokio::test]
    async fn events_are_passed_over_and_refusals_are_in_its_own_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let qemu = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (from, mut to) = stream.into_split();
            to.write_all(b"{\"QMP\":{\"version\":{}}}\n").await.unwrap();
            let mut lines = BufReader::new(from).lines();
            let mut said = Vec::new();
            let answers: [&[u8]; 3] = [
                b"{\"return\":{}}\n",
                b"{\"event\":\"STOP\"}\n{\"return\":[1,2]}\n",
                b"{\"error\":{\"class\":\"GenericError\",\"desc\":\"no such disk\"}}\n",
            ];
            for answer in answers {
                said.push(lines.next_line().await.unwrap().unwrap());
                to.write_all(answer).await.unwrap();
            }
            said
        });
        let mut qmp = Qmp::connect(&path).await.unwrap();
        assert_eq!(qmp.execute("query-some", json!({"all": true})).await.unwrap(), json!([1, 2]));
        let error = qmp.execute("stream", json!({})).await.unwrap_err();
        assert_eq!(error, "stream: no such disk");
        let said = qemu.await.unwrap();
        assert!(said[0].contains("qmp_capabilities") && said[1].contains("\"all\":true"), "{said:?}");
        assert!(qmp.execute("more", json!({})).await.is_err());
    }

    #[tokio::test]
    async fn what_is_not_qemu_is_said_to_be_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other");
        assert!(Qmp::connect(&path).await.is_err());
        let listener = UnixListener::bind(&path).unwrap();
        let other = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"{\"hello\":1}\n").await.unwrap();
            stream
        });
        assert!(Qmp::connect(&path).await.unwrap_err().contains("greet"));
        drop(other.await);
    }
}
