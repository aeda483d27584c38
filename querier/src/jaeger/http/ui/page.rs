//! The page of Jaeger UI, with what the server knows put in the places its build left for it.
//!
//! Different versions of the UI have different places: every place that is there is filled, and one that is missing is no error.

use std::path::Path;
use std::sync::LazyLock;

use regex::{NoExpand, Regex};

use super::{UiError, read_text};
use crate::json::{Escape, Object, push_str, push_text};

/// What the UI may offer. Figures of the Monitor tab and searches without a service always work here, and there is no assistant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capabilities {
    pub(super) archive: bool,
}

/// The operator's configuration of the UI.
#[derive(Debug, Default, PartialEq)]
pub(super) enum UiConfig {
    #[default]
    None,
    /// JSON that is safe inside a script.
    Json(String),
    Script(String),
}

static CONFIG: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new("JAEGER_CONFIG *= *DEFAULT_CONFIG;").ok());
static SCRIPT: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"(?im)^\s*//\s*JAEGER_CONFIG_JS.*\n.*").ok());
static VERSION: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new("JAEGER_VERSION *= *DEFAULT_VERSION;").ok());
static STORAGE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new("JAEGER_STORAGE_CAPABILITIES *= *DEFAULT_STORAGE_CAPABILITIES;").ok());
static BACKEND: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new("JAEGER_BACKEND_CAPABILITIES *= *DEFAULT_BACKEND_CAPABILITIES;").ok());

/// Reads the configuration of the UI.
pub(super) async fn config(path: Option<&Path>) -> Result<UiConfig, UiError> {
    let Some(path) = path else { return Ok(UiConfig::None) };
    let ending = path.extension().unwrap_or_default();
    if ending == "js" {
        return Ok(UiConfig::Script(read_text(path, false).await?));
    }
    if ending != "json" {
        return Err(UiError::UnknownForm { path: path.to_owned() });
    }
    let text = read_text(path, false).await?;
    match serde_json::from_str(&text) {
        Ok(value) => {
            let mut safe = String::new();
            push_json(&value, &mut safe);
            Ok(UiConfig::Json(safe))
        }
        Err(error) => Err(UiError::NotJson { path: path.to_owned(), error }),
    }
}

/// As JSON in which nothing ends a script. Depth is bounded by what was parsed.
fn push_json(value: &serde_json::Value, out: &mut String) {
    match value {
        serde_json::Value::String(text) => push_text(text, Escape::Html, out),
        serde_json::Value::Array(items) => {
            out.push('[');
            for (nth, item) in items.iter().enumerate() {
                if nth > 0 {
                    out.push(',');
                }
                push_json(item, out);
            }
            out.push(']');
        }
        serde_json::Value::Object(members) => {
            out.push('{');
            for (nth, (name, member)) in members.iter().enumerate() {
                if nth > 0 {
                    out.push(',');
                }
                push_text(name, Escape::Html, out);
                out.push(':');
                push_json(member, out);
            }
            out.push('}');
        }
        plain => crate::json::push_display(plain, out),
    }
}

/// The page with everything put in.
pub(super) fn filled(index: &str, config: &UiConfig, version: &str, base: &str, capabilities: Capabilities) -> String {
    let mut html = index.to_owned();
    let mut fill = |place: &Option<Regex>, text: &str| {
        if let Some(place) = place {
            html = place.replace(&html, NoExpand(text)).into_owned();
        }
    };
    match config {
        UiConfig::None => {}
        UiConfig::Json(json) => fill(&CONFIG, &format!("JAEGER_CONFIG = {json};")),
        UiConfig::Script(script) => fill(&SCRIPT, script),
    }
    fill(&VERSION, &format!("JAEGER_VERSION = {};", version_json(version)));
    let archive = capabilities.archive;
    fill(&STORAGE, &format!(r#"JAEGER_STORAGE_CAPABILITIES = {{"archiveStorage":{archive},"metricsStorage":true}};"#));
    let backend = format!(
        r#"JAEGER_BACKEND_CAPABILITIES = {{"archiveStorage":{archive},"metricsStorage":true,"searchWithoutServiceName":true,"aiAssistant":false}};"#
    );
    fill(&BACKEND, &backend);
    html.replacen(r#"<base href="/""#, &format!(r#"<base href="{base}/""#), 1)
}

fn version_json(version: &str) -> String {
    let mut out = String::new();
    let mut object = Object::open(&mut out);
    for (name, value) in [("gitCommit", ""), ("gitVersion", version), ("buildDate", "")] {
        push_str(value, object.member(name));
    }
    object.close();
    out
}

/// What stands in place of the UI where none was built.
pub(super) fn without_ui(base: &str) -> String {
    format!(
        r#"<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Spanhouse: Jaeger API</title></head>
<body>
<h1>Jaeger API of Spanhouse</h1>
<p>The API is here; Jaeger UI is not, because the setting <code>jaeger.ui_dir</code> names none. To see traces in Jaeger UI:</p>
<ol>
<li>Build it from <a href="https://github.com/jaegertracing/jaeger-ui">github.com/jaegertracing/jaeger-ui</a>
(<code>npm ci &amp;&amp; npm run build</code>, or with pnpm in newer versions);</li>
<li>set <code>jaeger.ui_dir</code> to the folder <code>packages/jaeger-ui/build</code> and start Spanhouse again.</li>
</ol>
<p>Grafana reads the same API: a Jaeger data source with the address of this page. Some of it:</p>
<ul>
<li><a href="{base}/api/services">{base}/api/services</a></li>
<li><a href="{base}/api/dependencies">{base}/api/dependencies</a></li>
<li><a href="{base}/api/v3/services">{base}/api/v3/services</a></li>
</ul>
</body>
</html>
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_compiles_and_is_filled() {
        let page = concat!(
            "<base href=\"/\" data-inject-target=\"BASE_URL\"/>\n<script>\n",
            "const JAEGER_CONFIG = DEFAULT_CONFIG;\nconst JAEGER_VERSION  =  DEFAULT_VERSION;\n",
            "const JAEGER_STORAGE_CAPABILITIES = DEFAULT_STORAGE_CAPABILITIES;\n",
            "const JAEGER_BACKEND_CAPABILITIES =DEFAULT_BACKEND_CAPABILITIES;\n",
            "  // JAEGER_CONFIG_JS\n  // the line below is replaced too\n</script>"
        );
        let all = filled(page, &UiConfig::Json(r#"{"a":"$1"}"#.into()), "1.0", "/jaeger", Capabilities { archive: true });
        let expected = concat!(
            "<base href=\"/jaeger/\" data-inject-target=\"BASE_URL\"/>\n<script>\n",
            "const JAEGER_CONFIG = {\"a\":\"$1\"};\n",
            "const JAEGER_VERSION = {\"gitCommit\":\"\",\"gitVersion\":\"1.0\",\"buildDate\":\"\"};\n",
            "const JAEGER_STORAGE_CAPABILITIES = {\"archiveStorage\":true,\"metricsStorage\":true};\n",
            "const JAEGER_BACKEND_CAPABILITIES = {\"archiveStorage\":true,\"metricsStorage\":true,\"searchWithoutServiceName\":true,\"aiAssistant\":false};\n",
            "  // JAEGER_CONFIG_JS\n  // the line below is replaced too\n</script>"
        );
        assert_eq!(all, expected);
        let script = UiConfig::Script("function UIConfig() { return {}; }".into());
        let with_script = filled(page, &script, "1.0", "", Capabilities { archive: false });
        assert!(with_script.contains("const JAEGER_CONFIG = DEFAULT_CONFIG;"), "{with_script}");
        assert!(with_script.ends_with("function UIConfig() { return {}; }\n</script>"), "{with_script}");
        assert_eq!(filled("<html>", &UiConfig::None, "1", "", Capabilities { archive: false }), "<html>");
    }

    #[test]
    fn configuration_cannot_leave_the_script() {
        let mut out = String::new();
        push_json(&serde_json::json!({"a</script>": ["<!--", 1.5, null, true, {}, []]}), &mut out);
        assert_eq!(out, r#"{"a\u003c/script\u003e":["\u003c!--",1.5,null,true,{},[]]}"#);
    }
}
