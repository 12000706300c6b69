//! Columns for people: as wide as needed, the last one cut to the terminal.

use super::ui::{Tone, Ui};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// One cell: its text, and how it is painted once its width is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Option<Tone>,
}

impl Cell {
    /// A painted cell.
    pub fn toned(tone: Tone, text: impl Into<String>) -> Self {
        Cell { text: text.into(), tone: Some(tone) }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell { text: text.into(), tone: None }
    }
}

/// Rows under a head, two blanks between columns. The last column takes what is left of `columns` and is cut with `…`;
/// a column that is empty in every row is left out.
pub fn lines(ui: &Ui, head: &[&str], rows: &[Vec<Cell>], columns: Option<usize>) -> Vec<String> {
    let used: Vec<usize> = (0..head.len())
        .filter(|&i| rows.iter().any(|row| row.get(i).is_some_and(|cell| !cell.text.is_empty())))
        .collect();
    let widths: Vec<usize> = used
        .iter()
        .map(|&i| {
            rows.iter().filter_map(|row| row.get(i)).map(|c| c.text.width()).chain([head[i].width()]).max().unwrap_or(0)
        })
        .collect();
    let title: Vec<Cell> = head.iter().map(|name| Cell::toned(Tone::Dim, *name)).collect();
    let mut out = Vec::with_capacity(rows.len() + 1);
    for row in std::iter::once(&title).chain(rows) {
        let mut line = String::new();
        let mut at = 0;
        for (nth, &i) in used.iter().enumerate() {
            let Some(cell) = row.get(i) else { continue };
            let last = nth + 1 == used.len();
            let room = if last {
                columns.map_or(usize::MAX, |columns| columns.saturating_sub(at).max(8))
            } else {
                widths[nth]
            };
            let text = cut(&cell.text, room);
            let pad = if last { 0 } else { widths[nth].saturating_sub(text.width()) + 2 };
            at += text.width() + pad;
            line.push_str(&cell.tone.map_or_else(|| text.clone(), |tone| ui.paint(tone, &text)));
            line.extend(std::iter::repeat_n(' ', pad));
        }
        out.push(line.trim_end().to_owned());
    }
    out
}

/// The text in at most `room` columns, the last of them `…` when something was cut.
pub fn cut(text: &str, room: usize) -> String {
    if text.width() <= room {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut width = 0;
    for c in text.chars() {
        let w = c.width().unwrap_or(0);
        if width + w + 1 > room {
            break;
        }
        width += w;
        out.push(c);
    }
    out.push('…');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Ui {
        Ui::new(false, "never", 0)
    }

    #[test]
    fn columns_are_as_wide_as_needed_and_the_last_is_cut() {
        let rows = vec![
            vec!["#9".into(), Cell::toned(Tone::Good, "✓ success"), "Fix the till that lost its last cent".into()],
            vec!["#10".into(), Cell::toned(Tone::Bad, "✗ failure"), "再試行".into()],
        ];
        insta::assert_snapshot!(lines(&plain(), &["RUN", "STATUS", "TITLE"], &rows, Some(34)).join("\n"), @r"
        RUN  STATUS     TITLE
        #9   ✓ success  Fix the till that…
        #10  ✗ failure  再試行
        ");
    }

    #[test]
    fn wide_characters_count_double() {
        assert_eq!(cut("再試行", 6), "再試行");
        assert_eq!(cut("再試行", 5), "再試…");
        assert_eq!(cut("再試行", 4), "再…");
    }

    #[test]
    fn a_column_without_content_is_left_out() {
        let rows = vec![vec!["a".into(), "".into(), "c".into()]];
        assert_eq!(lines(&plain(), &["A", "B", "C"], &rows, None), ["A  C", "a  c"]);
    }
}
