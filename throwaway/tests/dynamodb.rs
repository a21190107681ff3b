//! A throwaway DynamoDB endpoint answers, and is gone afterwards.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use throwaway::{DynamoDb, moto_binary};

#[test]
fn a_server_answers_as_dynamodb_and_is_gone_afterwards() {
    // `cargo xtask test` puts the program that it installed where it is found.
    let program = moto_binary()
        .expect("this test needs moto: run `cargo xtask test`, or put moto_server into PATH");
    let server = DynamoDb::start_with(&program).unwrap();
    let address = server.url().replace("http://", "");
    let body = "{}";
    let request = format!(
        "POST / HTTP/1.0\r\nHost: {address}\r\nX-Amz-Target: DynamoDB_20120810.ListTables\r\n\
        Authorization: AWS4-HMAC-SHA256 Credential=a/20300101/us-east-1/dynamodb/aws4_request, \
        SignedHeaders=host, Signature=0\r\n\
        Content-Type: application/x-amz-json-1.0\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(r#"{"TableNames": []}"#), "{answer}");
    drop(server);
    assert!(TcpStream::connect(address).is_err());
}
