//! The difference of two texts, as people read it.

/// A unified diff without file names; empty when the texts are the same.
pub fn unified_diff(before: &str, after: &str) -> String {
    let mut text = String::new();
    let Ok(mut patch) = git2::Patch::from_buffers(before.as_bytes(), None, after.as_bytes(), None, None) else {
        return text;
    };
    // Writing to a text cannot fail.
    let _ = patch.print(&mut |_, _, line| {
        let origin = line.origin();
        if matches!(origin, '+' | '-' | ' ') {
            text.push(origin);
        }
        if origin != 'F' {
            text.push_str(&String::from_utf8_lossy(line.content()));
        }
        true
    });
    text
}

#[cfg(test)]
mod tests {
    use super::unified_diff;

    #[test]
    fn what_changed_stands_between_what_did_not() {
        assert_eq!(unified_diff("a\n", "a\n"), "");
        let diff = unified_diff("a\nb\nc\n", "a\nB\nc\n");
        assert_eq!(diff, "@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n");
    }
}
