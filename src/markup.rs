//! Text put into HTML or XML: pages, mails and pictures of pipelines. Any text comes in; text that is safe in elements and in
//! quoted attributes goes out.

/// Makes text safe. Control characters, which XML cannot hold, and the marks that turn the direction of reading around
/// become U+FFFD: a commit's title must not change how the rest of the line is read.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.push('\u{fffd}');
            }
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn nothing_leaves_its_place() {
        let table = [
            ("a <b attr=\"x\"> & 'c'", "a &lt;b attr=&quot;x&quot;&gt; &amp; &#39;c&#39;"),
            ("two\n\tlines", "two\n\tlines"),
            ("\u{1b}[31m\0", "\u{fffd}[31m\u{fffd}"),
            ("exe.\u{202e}gnp", "exe.\u{fffd}gnp"),
            ("Zoë’s 🚀", "Zoë’s 🚀"),
        ];
        for (text, safe) in table {
            assert_eq!(escape(text), safe);
        }
    }
}
