//! OpenTelemetry is set by its own standard variables, as everywhere. Its SDK reads most of them itself;
//! here stands what has to be known before there is one.

use std::time::Duration;

use super::layers::Surroundings;

/// What the SDKs of OpenTelemetry wait for a collector, unless it is said.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A batch that takes longer holds up the next one.
const TIMEOUT_MAX: Duration = Duration::from_mins(1);

/// What is traced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtelSettings {
    /// Whether spans are to leave the process: where to is said, and nothing says not to.
    pub exports: bool,
    /// `OTEL_EXPORTER_OTLP_TIMEOUT`: longest time that a collector may take for a batch.
    pub timeout: Duration,
}

/// Reads the variables. One that cannot be read counts for nothing: nobody's jobs wait for their spans.
pub(super) fn otel(around: &Surroundings) -> OtelSettings {
    // What is said of traces alone goes before what is said of all.
    let either = |name: &str| {
        let traces = name.replace("OTLP_", "OTLP_TRACES_");
        around.var(&traces).or_else(|| around.var(name))
    };
    let disabled = around.var("OTEL_SDK_DISABLED").is_some_and(|word| word.eq_ignore_ascii_case("true"));
    let elsewhere = around.var("OTEL_TRACES_EXPORTER").is_some_and(|word| word != "otlp");
    let timeout = either("OTEL_EXPORTER_OTLP_TIMEOUT").and_then(|text| text.trim().parse().ok());
    OtelSettings {
        exports: either("OTEL_EXPORTER_OTLP_ENDPOINT").is_some() && !disabled && !elsewhere,
        timeout: timeout.map_or(TIMEOUT, |ms| Duration::from_millis(ms).min(TIMEOUT_MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> OtelSettings {
        otel(&Surroundings::new(vars.iter().copied(), "."))
    }

    #[test]
    fn nothing_is_exported_unless_it_is_said_where_to() {
        const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        for (vars, exports) in [
            (vec![], false),
            (vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "")], false),
            (vec![("OTEL_SERVICE_NAME", "mill")], false),
            (vec![ENDPOINT], true),
            (vec![("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:4318/v1/traces")], true),
            (vec![ENDPOINT, ("OTEL_SDK_DISABLED", "True")], false),
            (vec![ENDPOINT, ("OTEL_SDK_DISABLED", "false")], true),
            (vec![ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")], false),
            (vec![ENDPOINT, ("OTEL_TRACES_EXPORTER", "otlp")], true),
        ] {
            assert_eq!(read(&vars).exports, exports, "{vars:?}");
        }
    }

    #[test]
    fn a_timeout_is_in_milliseconds_and_has_an_end() {
        for (vars, seconds) in [
            (vec![], 10.0),
            (vec![("OTEL_EXPORTER_OTLP_TIMEOUT", "2500")], 2.5),
            (vec![("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"), ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "500")], 0.5),
            (vec![("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")], 10.0),
            (vec![("OTEL_EXPORTER_OTLP_TIMEOUT", "99999999999")], 60.0),
        ] {
            assert_eq!(read(&vars).timeout, Duration::from_secs_f64(seconds), "{vars:?}");
        }
    }
}
