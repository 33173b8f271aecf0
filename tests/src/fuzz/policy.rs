//! The policy: what a user may have written.

use dormouse::policy::Policy;

/// Reads any text as a policy.
pub(super) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match Policy::parse("policy", text) {
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
