//! The loop of the terminal client: a thread for the session, one for the keys, and here the screen.

use super::model::{Effect, Model};
use super::view;
use crate::cli::ChatArgs;
use crate::client::{ClientError, Mode, Session, Update, random_u128, unix_ms};
use crate::commands::talk::session_options;
use crossterm::event::{DisableBracketedPaste, EnableBracketedPaste, Event as Input, KeyEventKind};
use crossterm::execute;
use std::collections::VecDeque;
use std::io::{IsTerminal, Write, stdout};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// What waits for the screen, or for the session, at the most.
const QUEUE: usize = 1024;
/// The screen is drawn at least this often, for what changes with the time.
const REDRAW: Duration = Duration::from_secs(5);

/// How soon orders that found no room are tried again.
const SOON: Duration = Duration::from_millis(10);

/// What the threads say to the screen.
enum Said {
    Update(Update),
    Input(Input),
    Ended(ClientError),
}

/// Gives the terminal back, whatever happens.
struct Screen(ratatui::DefaultTerminal);

impl Screen {
    fn take() -> Result<Self, ClientError> {
        let fail = |error: std::io::Error| ClientError::Local(format!("cannot use the terminal: {error}"));
        // Its panic hook gives the terminal back before the message is printed.
        let terminal = ratatui::try_init().map_err(fail)?;
        let screen = Self(terminal);
        execute!(stdout(), EnableBracketedPaste).map_err(fail)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = execute!(stdout(), DisableBracketedPaste);
        ratatui::restore();
    }
}

/// Runs until the user quits or the session ends for good.
pub(crate) fn run(args: &ChatArgs) -> Result<(), ClientError> {
    if !stdout().is_terminal() || !std::io::stdin().is_terminal() {
        let what = "`parley chat` needs a terminal; `parley send` and `parley tail` are for scripts";
        return Err(ClientError::Asked(what.to_owned()));
    }
    let mut session = Session::new(session_options(&args.client, Mode::Live, "chat")?)?;
    let local = |error: std::io::Error| ClientError::Local(error.to_string());
    let (wake, woken) = UnixStream::pair().map_err(local)?;
    wake.set_nonblocking(true).map_err(local)?;
    session.wake_by(woken)?;
    let (say, said) = sync_channel(QUEUE);
    let (order, orders) = sync_channel(QUEUE);
    let say_too = say.clone();
    std::thread::Builder::new()
        .name("session".to_owned())
        .spawn(move || serve(session, &orders, &say))
        .map_err(local)?;
    let screen = Screen::take()?;
    std::thread::Builder::new().name("keys".to_owned()).spawn(move || read_keys(&say_too)).map_err(local)?;
    show(screen, &said, &order, wake)
}

/// The keys' thread: it ends with the process.
fn read_keys(say: &SyncSender<Said>) {
    while let Ok(input) = crossterm::event::read() {
        if say.send(Said::Input(input)).is_err() {
            return;
        }
    }
}

/// The session's thread.
fn serve(mut session: Session, orders: &Receiver<Effect>, say: &SyncSender<Said>) {
    loop {
        while let Ok(effect) = orders.try_recv() {
            match effect {
                Effect::Submit(frame) => {
                    if let Err(error) = session.submit(frame) {
                        let _ = say.send(Said::Ended(error));
                        return;
                    }
                }
                Effect::Fire(frame) => {
                    session.fire(&frame);
                }
                Effect::Read(chat_id, seq) => session.read(chat_id, seq),
                Effect::Subscribe(chat_id) => session.subscribe(chat_id),
                Effect::Unsubscribe(chat_id) => session.unsubscribe(chat_id),
                Effect::Quit => {
                    let _ = session.close();
                    return;
                }
            }
        }
        let said = match session.next(None) {
            Ok(Update::Woken | Update::Idle) => continue,
            Ok(update) => Said::Update(update),
            Err(error) => Said::Ended(error),
        };
        let ended = matches!(said, Said::Ended(_));
        if say.send(said).is_err() || ended {
            return;
        }
    }
}

fn show(
    mut screen: Screen,
    said: &Receiver<Said>,
    order: &SyncSender<Effect>,
    mut wake: UnixStream,
) -> Result<(), ClientError> {
    let mut model = Model::new(random_u128());
    // What found no room in the queue. The screen never waits for the session, which may be waiting for the screen.
    let mut waiting: VecDeque<Effect> = VecDeque::new();
    let fail = |error: std::io::Error| ClientError::Local(format!("cannot draw: {error}"));
    loop {
        let mut rendered = None;
        screen.0.draw(|frame| rendered = Some(view::render(frame, &model, unix_ms()))).map_err(fail)?;
        if let Some(rendered) = rendered {
            model.rendered(rendered.lines, rendered.seen);
        }
        let patience = if waiting.is_empty() { REDRAW } else { SOON };
        let first = match said.recv_timeout(patience) {
            Ok(first) => Some(first),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        // What waits already is one picture, up to a bound, so that a flood does not starve the screen.
        for heard in first.into_iter().chain(said.try_iter()).take(QUEUE) {
            hear(&mut model, heard)?;
        }
        waiting.extend(model.take_effects());
        if waiting.is_empty() {
            continue;
        }
        let quit = waiting.contains(&Effect::Quit);
        while let Some(effect) = waiting.pop_front() {
            match order.try_send(effect) {
                Ok(()) => {}
                Err(TrySendError::Full(effect)) => {
                    waiting.push_front(effect);
                    break;
                }
                Err(TrySendError::Disconnected(_)) => return Ok(()),
            }
        }
        // The session waits on its socket: a byte wakes it. A full stream has woken it already.
        let _ = wake.write(&[0]);
        if quit {
            return Ok(());
        }
    }
}

fn hear(model: &mut Model, said: Said) -> Result<(), ClientError> {
    match said {
        Said::Update(Update::Connected(welcome)) => model.connected(&welcome),
        Said::Update(Update::Disconnected { why, retry_in }) => model.disconnected(&why, retry_in),
        Said::Update(Update::Frame(frame)) => model.frame(*frame),
        Said::Update(Update::CaughtUp | Update::NewHistory | Update::Idle | Update::Woken) => {}
        Said::Input(Input::Key(key)) if key.kind != KeyEventKind::Release => model.key(key, unix_ms()),
        Said::Input(Input::Paste(text)) => model.paste(&text),
        Said::Input(_) => {}
        Said::Ended(error) => return Err(error),
    }
    Ok(())
}
