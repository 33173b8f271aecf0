//! The policy: what a user may have written.

use dormouse::policy::Policy;

/// Where the next file of a policy begins.
const NEXT_FILE: char = '\u{1e}';

/// Reads any text as a policy, in as many files as it names.
pub(super) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let files: Vec<(&str, &str)> = text.split(NEXT_FILE).map(|text| ("policy", text)).collect();
    match Policy::merge("policy", &files) {
        Ok(policy) => {
            // B and D read what A has written.
            let written = policy.to_toml();
            match Policy::parse("written", &written) {
                Ok(read) => assert_eq!(read, policy, "{written}"),
                Err(error) => assert_eq!(error.to_string(), "", "{written}"),
            }
        }
        Err(error) => assert!(error.to_string().starts_with("policy")),
    }
}
