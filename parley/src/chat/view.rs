//! How the terminal client looks: chats at the left, messages at the right, a line to type in, a line of state.

use super::model::{Chat, Link, Model, Reach};
use super::words::HELP;
use crate::commands::show;
use parley_protocol::{Event, UserId};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Position, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};

/// Columns of the list of chats.
const CHATS_WIDTH: u16 = 24;
/// A narrower terminal shows no list.
const LIST_MIN_WIDTH: u16 = 50;

/// How many lines the messages take, and how many of them are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rendered {
    /// All.
    pub(crate) lines: usize,
    /// On the screen.
    pub(crate) seen: usize,
}

/// Draws everything. `now_unix_ms` tells which chats are silent and which messages have expired.
pub(crate) fn render(frame: &mut Frame<'_>, model: &Model, now_unix_ms: u64) -> Rendered {
    let [body, status] = Layout::vertical([Constraint::Min(3), Constraint::Length(1)]).areas(frame.area());
    let list_width = if body.width < LIST_MIN_WIDTH { 0 } else { CHATS_WIDTH };
    let [list, chat] = Layout::horizontal([Constraint::Length(list_width), Constraint::Min(10)]).areas(body);
    if list_width > 0 {
        render_list(frame, model, list, now_unix_ms);
    }
    let [title, messages, input] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(1), Constraint::Length(2)]).areas(chat);
    let label = model.open.map_or_else(|| "no chat is open".to_owned(), |chat_id| model.label(chat_id));
    frame.render_widget(Paragraph::new(label).style(Style::new().add_modifier(Modifier::BOLD)), title);
    let rendered = render_messages(frame, model, messages, now_unix_ms);
    render_input(frame, model, input);
    render_status(frame, model, status);
    rendered
}

fn render_list(frame: &mut Frame<'_>, model: &Model, area: Rect, now_unix_ms: u64) {
    let block = Block::new().borders(Borders::RIGHT);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let order = model.order();
    let rows = usize::from(inner.height);
    let at = order.iter().position(|chat_id| Some(*chat_id) == model.open).unwrap_or(0);
    let first = (at + 1).saturating_sub(rows);
    let width = usize::from(inner.width).saturating_sub(1);
    let lines: Vec<Line<'_>> = order
        .iter()
        .skip(first)
        .take(rows)
        .map(|chat_id| {
            let chat = &model.chats[chat_id];
            let badge = match chat.unread() {
                _ if chat.left => " left".to_owned(),
                0 if chat.muted_until_ms > now_unix_ms => " muted".to_owned(),
                0 => String::new(),
                unread => format!(" ({unread})"),
            };
            let label = cut(&model.label(*chat_id), width.saturating_sub(badge.len()));
            let mut style = Style::new();
            if !badge.is_empty() && chat.muted_until_ms <= now_unix_ms && !chat.left {
                style = style.add_modifier(Modifier::BOLD);
            }
            if Some(*chat_id) == model.open {
                style = style.add_modifier(Modifier::REVERSED);
            }
            Line::from(Span::styled(format!("{label}{badge}"), style))
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), inner);
}

fn render_messages(frame: &mut Frame<'_>, model: &Model, area: Rect, now_unix_ms: u64) -> Rendered {
    let seen = usize::from(area.height);
    let width = usize::from(area.width);
    let lines = if model.help { help_lines() } else { message_lines(model, width, now_unix_ms) };
    let scroll = model.scroll.min(lines.len().saturating_sub(seen));
    let end = lines.len() - scroll;
    let start = end.saturating_sub(seen);
    let shown: Vec<Line<'_>> = lines[start..end].to_vec();
    // Newest at the bottom, also when there are few.
    let top = area.height - shown.len() as u16;
    let area = Rect { y: area.y + top, height: shown.len() as u16, ..area };
    frame.render_widget(Paragraph::new(shown), area);
    Rendered { lines: lines.len(), seen }
}

fn help_lines() -> Vec<Line<'static>> {
    HELP.iter().map(|(usage, what)| Line::from(format!("{usage:<25} {what}"))).collect()
}

fn message_lines(model: &Model, width: usize, now_unix_ms: u64) -> Vec<Line<'static>> {
    let Some(chat) = model.open.and_then(|chat_id| model.chats.get(&chat_id)) else {
        return vec![Line::from("/dm NAME opens a chat, /help shows everything else.")];
    };
    let mut lines = Vec::new();
    let dim = Style::new().add_modifier(Modifier::DIM);
    let mut day = String::new();
    for event in chat.events.values().filter(|event| !show::is_expired(event, now_unix_ms)) {
        let time = show::date_time(show::time_ms(event.message_id));
        let (date, clock) = time.split_at(10);
        if date != day {
            day = date.to_owned();
            lines.push(Line::from(Span::styled(format!("-- {day} UTC --"), dim)));
        }
        let state = if Some(event.sender) == model.me { reach(chat, event) } else { String::new() };
        let text = show::words(event, &|user| model.name(user));
        wrap(&mut lines, &clock[1..6], &model.name(event.sender), color(event.sender), &text, &state, width);
    }
    for sending in &chat.sending {
        let state = match (&sending.failed, sending.sent) {
            (Some(why), _) => format!("not sent: {why}"),
            (None, true) => "sent".to_owned(),
            (None, false) => "…".to_owned(),
        };
        let me = model.me.unwrap_or(UserId(0));
        let text = show::plain(&sending.text);
        wrap(&mut lines, "     ", &show::plain(&model.my_name), color(me), &text, &state, width);
    }
    lines
}

fn reach(chat: &Chat, event: &Event) -> String {
    if event.envelope.kind != parley_protocol::body::kind::MESSAGE {
        return String::new();
    }
    match chat.reach(event.seq) {
        Reach::Sent => "sent".to_owned(),
        Reach::Delivered => "delivered".to_owned(),
        Reach::ReadBy(read, others) => format!("read {read}/{others}"),
        Reach::Read => "read".to_owned(),
    }
}

fn color(user: UserId) -> Color {
    const COLORS: [Color; 6] = [Color::Cyan, Color::Green, Color::Yellow, Color::Magenta, Color::Blue, Color::LightRed];
    COLORS[(user.0 % COLORS.len() as u64) as usize]
}

/// Columns that a text takes.
fn columns(text: &str) -> usize {
    Span::raw(text).width()
}

/// As much of a text as fits, with a mark where something is missing.
fn cut(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    for grapheme in Span::raw(text).styled_graphemes(Style::new()) {
        if columns(&kept) + columns(grapheme.symbol) + 1 > width {
            break;
        }
        kept.push_str(grapheme.symbol);
    }
    kept.push('…');
    kept
}

/// One message as lines: time, name, text, state; what does not fit goes on below the text's beginning.
fn wrap(lines: &mut Vec<Line<'static>>, clock: &str, name: &str, color: Color, text: &str, state: &str, width: usize) {
    let dim = Style::new().add_modifier(Modifier::DIM);
    let name = cut(name, width / 3);
    let mut spans = vec![
        Span::styled(format!("{clock} "), dim),
        Span::styled(name.clone(), Style::new().fg(color).add_modifier(Modifier::BOLD)),
        Span::raw(": "),
    ];
    let first = columns(clock) + 1 + columns(&name) + 2;
    let indent = columns(clock) + 1;
    let mut used = first;
    let mut row = String::new();
    for word in text.split_inclusive(' ') {
        if used + columns(word.trim_end()) > width && used > indent && !(row.is_empty() && used == first) {
            finish(lines, &mut spans, &mut row, indent);
            used = indent;
        }
        for grapheme in Span::raw(word).styled_graphemes(Style::new()) {
            let columns = columns(grapheme.symbol);
            if used + columns > width && used > indent {
                finish(lines, &mut spans, &mut row, indent);
                used = indent;
            }
            row.push_str(grapheme.symbol);
            used += columns;
        }
    }
    if !state.is_empty() && used + 2 + columns(state) > width {
        finish(lines, &mut spans, &mut row, indent);
    }
    spans.push(Span::raw(std::mem::take(&mut row)));
    if !state.is_empty() {
        spans.push(Span::styled(format!("  {state}"), dim));
    }
    lines.push(Line::from(spans));
}

fn finish(lines: &mut Vec<Line<'static>>, spans: &mut Vec<Span<'static>>, row: &mut String, indent: usize) {
    spans.push(Span::raw(std::mem::take(row)));
    lines.push(Line::from(std::mem::replace(spans, vec![Span::raw(" ".repeat(indent))])));
}

fn render_input(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let block = Block::new().borders(Borders::TOP);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let width = usize::from(inner.width).saturating_sub(3);
    let cursor = columns(model.line.before_cursor());
    // The end of what stands before the cursor stays in sight.
    let hidden = cursor.saturating_sub(width);
    let mut shown = String::new();
    let mut skipped = 0;
    for grapheme in Span::raw(model.line.text()).styled_graphemes(Style::new()) {
        if skipped < hidden {
            skipped += columns(grapheme.symbol);
        } else {
            shown.push_str(grapheme.symbol);
        }
    }
    frame.render_widget(Paragraph::new(format!("> {shown}")), inner);
    let column = 2 + cursor.saturating_sub(skipped);
    let x = inner.x + u16::try_from(column).unwrap_or(u16::MAX).min(inner.width.saturating_sub(1));
    frame.set_cursor_position(Position::new(x, inner.y));
}

fn render_status(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let link = match &model.link {
        Link::Connecting => "connecting".to_owned(),
        Link::Up => format!("{} · connected", show::plain(&model.my_name)),
        Link::Down(why) => format!("reconnecting: {}", show::plain(why)),
    };
    let text = match &model.notice {
        Some(notice) => notice.clone(),
        None if model.scroll > 0 && model.new_below > 0 => {
            format!("{link} · {} new below · PageDown or Esc for the newest", model.new_below)
        }
        None if model.scroll > 0 => format!("{link} · PageDown or Esc for the newest"),
        None => format!("{link} · /help"),
    };
    let text = cut(&text, usize::from(area.width));
    frame.render_widget(Paragraph::new(text).style(Style::new().add_modifier(Modifier::REVERSED)), area);
}
