//! The input line: a text and a cursor, moved by whole characters.

/// Longer than any message that a gateway takes by default; what is pasted beyond is cut off.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// A line being typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    text: String,
    /// A byte offset at a character's border.
    cursor: usize,
}

impl Line {
    /// The text.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// What stands before the cursor.
    pub(crate) fn before_cursor(&self) -> &str {
        &self.text[..self.cursor]
    }

    /// Takes the text out.
    pub(crate) fn take(&mut self) -> String {
        self.cursor = 0;
        std::mem::take(&mut self.text)
    }

    /// Types a text; line breaks and other control characters become spaces.
    pub(crate) fn insert(&mut self, text: &str) {
        for character in text.chars() {
            let character = if character.is_control() { ' ' } else { character };
            if self.text.len() + character.len_utf8() > LINE_BYTES_MAX {
                return;
            }
            self.text.insert(self.cursor, character);
            self.cursor += character.len_utf8();
        }
    }

    /// Removes the character before the cursor.
    pub(crate) fn backspace(&mut self) {
        if let Some(character) = self.before_cursor().chars().next_back() {
            self.cursor -= character.len_utf8();
            self.text.remove(self.cursor);
        }
    }

    /// Removes the character under the cursor.
    pub(crate) fn delete(&mut self) {
        if self.cursor < self.text.len() {
            self.text.remove(self.cursor);
        }
    }

    /// Removes the word before the cursor.
    pub(crate) fn delete_word(&mut self) {
        let kept = self.before_cursor().trim_end();
        let start = kept.rfind(' ').map_or(0, |at| at + 1);
        self.text.replace_range(start..self.cursor, "");
        self.cursor = start;
    }

    /// Removes everything.
    pub(crate) fn clear(&mut self) {
        self.take();
    }

    /// One character to the left.
    pub(crate) fn left(&mut self) {
        self.cursor -= self.before_cursor().chars().next_back().map_or(0, char::len_utf8);
    }

    /// One character to the right.
    pub(crate) fn right(&mut self) {
        self.cursor += self.text[self.cursor..].chars().next().map_or(0, char::len_utf8);
    }

    /// To the start.
    pub(crate) fn home(&mut self) {
        self.cursor = 0;
    }

    /// To the end.
    pub(crate) fn end(&mut self) {
        self.cursor = self.text.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_edited_by_characters_of_any_length() {
        let mut line = Line::default();
        line.backspace();
        line.delete();
        line.left();
        line.right();
        line.insert("grüße an\nalle");
        assert_eq!(line.text(), "grüße an alle");
        line.delete_word();
        line.delete_word();
        assert_eq!(line.text(), "grüße ");
        line.home();
        line.right();
        line.right();
        line.delete();
        assert_eq!((line.text(), line.before_cursor()), ("grße ", "gr"));
        line.insert("ü");
        line.left();
        line.backspace();
        assert_eq!(line.text(), "güße ");
        line.end();
        assert_eq!((line.take().as_str(), line.text()), ("güße ", ""));
        line.insert(&"ä".repeat(LINE_BYTES_MAX));
        assert_eq!(line.text().len(), LINE_BYTES_MAX);
    }
}
