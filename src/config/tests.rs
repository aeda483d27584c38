use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

fn load(yaml: &str, env: &[(&str, &str)], flags: FlagOverrides) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.yaml");
    std::fs::write(&path, yaml).unwrap();
    Config::load(Some(&path), env.iter().map(|(k, v)| (k.to_string(), v.to_string())), flags)
}

fn error(yaml: &str, env: &[(&str, &str)]) -> String {
    load(yaml, env, FlagOverrides::default()).unwrap_err().to_string()
}

#[test]
fn later_sources_win() {
    let yaml =
        "# mine\ndata_dir: /from/file\nlisten: 10.0.0.1\nshutdown: 5s\nports:\n  http: 3200\nwal:\n  linger: 4ms\nquery:\n";
    let env =
        [("SPANHOUSE_LISTEN", "10.0.0.2"), ("SPANHOUSE_WAL_LINGER", "5ms"), ("HOME", "/root"), ("SPANHOUSE_CONFIG", "x")];
    let flags = FlagOverrides { listen: Some("0.0.0.0".into()), ..Default::default() };
    let config = load(yaml, &env, flags).unwrap();
    assert_eq!(config.data_dir, PathBuf::from("/from/file"));
    assert_eq!(config.listen.to_string(), "0.0.0.0");
    assert_eq!((config.shutdown, config.wal.linger), (Duration::from_secs(5), Duration::from_millis(5)));
    assert_eq!(config.ports.http, Port { number: Some(3200), explicit: true });
    assert!(!config.ports.otlp_grpc.explicit);
    assert_eq!(config.wal_dir(), PathBuf::from("/from/file/wal"));
    assert_eq!(config.storage_location(), StorageLocation::Directory("/from/file/blocks".into()));
    assert_eq!(Config::load(None, [], FlagOverrides::default()).unwrap(), Config::default());
    assert_eq!(load("", &[], FlagOverrides::default()).unwrap(), Config::default());
    assert_eq!(load("# nothing\n", &[], FlagOverrides::default()).unwrap(), Config::default());
}

#[test]
fn errors_name_place_key_and_the_nearest_key() {
    let text = error("listen: 127.0.0.1\ningest:\n  max_trace_bytes: 1MB\n  max_body_byte: 3MiB\n", &[]);
    assert!(
        text.ends_with("test.yaml, line 4: unknown setting `ingest.max_body_byte`; did you mean `ingest.max_body_bytes`?"),
        "{text}"
    );
    let text = error("ingst:\n  max_body_bytes: 3MiB\n", &[]);
    assert!(text.ends_with("line 1: unknown setting `ingst`; did you mean `ingest`?"), "{text}");
    let text = error("", &[("SPANHOUSE_INGEST_MAX_BODY_BYTE", "1")]);
    assert!(text.contains("variable SPANHOUSE_INGEST_MAX_BODY_BYTE: unknown"), "{text}");
    assert!(text.ends_with("did you mean `SPANHOUSE_INGEST_MAX_BODY_BYTES`?"), "{text}");
    let text = error("flush:\n  max_age: soon\n", &[]);
    assert!(text.contains("line 2: flush.max_age: `soon` is not a duration"), "{text}");
    assert!(error("target: querier\n", &[]).contains("are: all"));
    assert!(error("flush: 3\n", &[]).contains("unknown setting `flush`"));
    assert!(error("listen:\n", &[]).contains("listen: has no value"));
    assert!(error("listen: [1]\n", &[]).contains("expected a single value"));
    assert!(error("a: [\n", &[]).contains("not valid YAML"));
    assert!(error("- 1\n", &[]).contains("expected `setting: value`"));
    assert!(error("listen: ::1\nlisten: ::1\n", &[]).contains("not valid YAML"), "a key twice");
    let missing = Config::load(Some(Path::new("/does/not/exist.yaml")), [], FlagOverrides::default());
    assert!(missing.unwrap_err().to_string().contains("cannot read the configuration file /does/not/exist.yaml"));
}

#[test]
fn values_that_do_not_fit_together_are_refused() {
    assert!(error("ingest: {max_decoded_bytes: 1MiB}\n", &[]).contains("less than ingest.max_body_bytes (20MiB)"));
    assert!(error("wal: {max_bytes: 65MiB}\n", &[]).contains("wal.max_bytes: 65MiB is less than two segments"));
    assert!(error("ports: {http: 4318}\n", &[]).contains("ports.http: 4318 is also ports.otlp_http"));
    assert!(error("storage: {url: 'ftp://x'}\n", &[]).contains("`ftp://` is not a store"));
    assert!(error("flush: {window: 2h}\n", &[]).contains("15m, 1h, 6h or 24h"));
    assert!(error("compaction: {fan_in: 33}\n", &[]).contains("compaction.fan_in: 33 is not between 2 and 32"));
    assert!(error("compaction: {fan_in: 1}\n", &[]).contains("is not between 2 and 32"));
    assert!(error("compaction: {target_spans: 5000000000}\n", &[]).contains("is not between 1000 and 4294967295"));
    assert!(error("compaction: {target_bytes: 1000}\n", &[]).contains("compaction.target_bytes: must be at least 1MiB"));
    assert!(error("ingest: {rate_limit_bytes: 1MB, burst_size_bytes: 1MB}\n", &[]).contains("never be taken"));
    assert!(
        error("sampling: {default_probability: 1.5}\n", &[]).contains("sampling.default_probability: 1.5 is not between")
    );
    assert!(error("sampling: {calculation_buckets: 11}\n", &[]).contains("between 1 and aggregation_buckets (10)"));
    assert!(error("sampling: {target_samples_per_second: 0}\n", &[]).contains("must be more than 0"));
    assert!(error("sampling: {adaptive: true, strategies_file: x}\n", &[]).contains("set one of them"));
    assert!(load("ports: {http: 0, otlp_http: 0, otlp_grpc: 0}\n", &[], FlagOverrides::default()).is_ok());
    let off = load("ports: {zipkin: off}\n", &[("SPANHOUSE_PORTS_JAEGER", "off")], FlagOverrides::default()).unwrap();
    let is_off = Port { number: None, explicit: true };
    assert_eq!((off.ports.zipkin, off.ports.jaeger), (is_off, is_off));
    assert!(off.to_yaml(None).contains("  zipkin: off\n"));
}

#[test]
fn what_is_printed_reads_back_and_keeps_secrets() {
    let yaml = "data_dir: '/a b: #c'\nmemory: {total: 2GiB}\nstorage:\n  url: s3://bucket/prefix\n  options:\n    aws_region: eu-1\n";
    let env = [
        ("SPANHOUSE_STORAGE_OPTIONS_AWS_SECRET_ACCESS_KEY", "hunter2"),
        ("SPANHOUSE_STORAGE_OPTIONS_AWS_ACCESS_KEY_ID", "me"),
        ("SPANHOUSE_SAMPLING_STRATEGIES_FILE", "https://me:hunter2@host/strategies"),
    ];
    let config = load(yaml, &env, FlagOverrides::default()).unwrap();
    assert_eq!(config.storage.options["aws_secret_access_key"], "hunter2");
    let printed = config.to_yaml(None);
    assert!(!printed.contains("hunter2") && !format!("{config:?}").contains("hunter2"));
    let mut again = load(&printed, &env, FlagOverrides::default()).unwrap();
    again.ports = config.ports;
    assert_eq!(again, config);
    let shares = config.memory.shares(None).unwrap();
    assert!(config.to_yaml(Some(&shares)).contains("Here: 640MiB."));
    assert_eq!(print::mask_url("s3://me:pw@host/x"), "s3://<secret>@host/x");
}

/// The committed files are what the table says.
#[test]
fn generated_files_are_current() {
    let head = "# Every setting with its default. Generated; keep only the lines you change.\n\n";
    let files =
        [("reference.md", print::reference()), ("spanhouse.yaml", format!("{head}{}", Config::default().to_yaml(None)))];
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/config");
    for (name, expected) in files {
        let path = dir.join(name);
        if std::env::var_os("UPDATE_GENERATED").is_some() {
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(&path, &expected).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == expected,
            "{} is out of date: run UPDATE_GENERATED=1 cargo test -p spanhouse config",
            path.display()
        );
    }
}
