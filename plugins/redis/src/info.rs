//! The text that INFO answers: sections of `name:value` lines.

/// One or more INFO texts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Info<'a>(pub(crate) &'a str);

impl<'a> Info<'a> {
    /// The text of a bulk reply.
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self, String> {
        std::str::from_utf8(bytes).map(Self).map_err(|error| format!("INFO is not UTF-8: {error}"))
    }

    /// Each `name:value`.
    pub(crate) fn fields(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(':'))
    }

    /// The values of `names`, found in one pass: INFO has hundreds of lines and is read often.
    pub(crate) fn texts<const N: usize>(self, names: [&str; N]) -> [Option<&'a str>; N] {
        let mut values = [None; N];
        for (field, value) in self.fields() {
            if let Some(at) = names.iter().position(|name| *name == field) {
                values[at] = Some(value);
            }
        }
        values
    }

    /// The keys of all databases: `db0:keys=1,expires=0,avg_ttl=0`.
    pub(crate) fn keys(self) -> f64 {
        let databases = self.fields().filter(|(name, _)| {
            name.strip_prefix("db").is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        });
        databases
            .filter_map(|(_, value)| part(value, "keys")?.parse::<f64>().ok())
            .fold(0.0, |sum, keys| sum + keys)
    }
}

/// A value as a number; what redis writes there otherwise is taken for absent.
pub(crate) fn number(text: Option<&str>) -> Option<f64> {
    text?.parse().ok().filter(|value: &f64| value.is_finite())
}

/// The value of `name` in `name=value,name=value`.
pub(crate) fn part<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split(',')
        .filter_map(|part| part.split_once('='))
        .find(|(found, _)| *found == name)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Server\r\nredis_version:7.0.15\r\nuptime_in_seconds:12\r\nbad:x\r\n\r\n# Keyspace\r\n\
                        db0:keys=3,expires=1,avg_ttl=0\r\ndb11:keys=4,expires=0,avg_ttl=0\r\ndbx:keys=9\r\n";

    #[test]
    fn fields_are_found_by_name() {
        let info = Info(TEXT);
        let [bad, version, absent, uptime] =
            info.texts(["bad", "redis_version", "absent", "uptime_in_seconds"]);
        assert_eq!((version, number(uptime)), (Some("7.0.15"), Some(12.0)));
        assert_eq!((number(bad), number(absent), number(Some("inf"))), (None, None, None));
        assert_eq!(info.keys(), 7.0);
    }

    #[test]
    fn parts_are_found_by_name() {
        assert_eq!(part("ip=10.0.0.1,port=1,lag=0", "port"), Some("1"));
        assert_eq!(part("calls=1", "usec"), None);
    }
}
