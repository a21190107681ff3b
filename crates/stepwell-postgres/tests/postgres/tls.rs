//! Encrypted connections: asked for, checked, and refused where they are not what was asked for.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use stepwell_core::Store as _;
use stepwell_postgres::{PostgresOptions, PostgresStore};

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Makes the server take encrypted connections, with a certificate of that authority for 127.0.0.1.
fn encrypt(postgres: &throwaway::Postgres, authority: &CertifiedIssuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    // The key has to be a file of the server's own user, which writes it itself.
    for (file, text) in [("server.key", key.serialize_pem()), ("server.crt", certificate.pem())] {
        let write = format!(
            "COPY (SELECT translate(encode('{text}', 'base64'), chr(10), '')) TO PROGRAM 'umask \
             077; base64 -d > {file}'"
        );
        postgres.sql(&write).unwrap();
    }
    postgres.sql("ALTER SYSTEM SET ssl = on").unwrap();
    postgres.stop(throwaway::Stop::Fast).unwrap();
    postgres.start_again().unwrap();
}

async fn connect(postgres: &throwaway::Postgres, query: &str) -> Result<PostgresStore, String> {
    let options = PostgresOptions::parse(&format!("{}?{query}", postgres.url())).unwrap();
    PostgresStore::connect(options).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn connections_are_encrypted_and_the_server_is_who_it_says() {
    let postgres = throwaway::Postgres::start().unwrap();
    let refused = connect(&postgres, "sslmode=require").await.err().unwrap();
    assert!(
        refused.contains("cannot open the database"),
        "the server knows no encryption: {refused}"
    );

    let (ours, another) = (authority(), authority());
    encrypt(&postgres, &ours);
    let folder = tempfile::tempdir().unwrap();
    let root = |name: &str, authority: &CertifiedIssuer<'static, KeyPair>| {
        let file = folder.path().join(name);
        std::fs::write(&file, authority.pem()).unwrap();
        format!("sslmode=verify-full&sslrootcert={}", file.display())
    };
    for query in ["sslmode=require", &root("ours.pem", &ours)] {
        let store =
            connect(&postgres, &format!("{query}&application_name=encrypted")).await.unwrap();
        store.queues().await.unwrap();
        let plain = postgres
            .sql(
                "SELECT count(*) FILTER (WHERE s.ssl), count(*) FILTER (WHERE NOT s.ssl)
                FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid)
                WHERE a.application_name = 'encrypted'",
            )
            .unwrap();
        let (encrypted, plain) = plain.trim().split_once('|').unwrap();
        assert!(encrypted != "0" && plain == "0", "{query}: {encrypted} encrypted, {plain} not");
    }
    let refused = connect(&postgres, &root("another.pem", &another)).await.err().unwrap();
    assert!(refused.to_lowercase().contains("certificate"), "{refused}");
}
