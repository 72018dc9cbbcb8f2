//! A command's conversation with the gateway: one question, one answer, within its time.

use crate::cli::{ClientArgs, ScriptArgs};
use crate::client::{Address, ClientError, Mode, Session, SessionOptions, Update, Who, random_u128, state_dir};
use gateway::identity::DevKey;
use parley_protocol::wire::Encoding;
use parley_protocol::{ChatId, ClientFrame, ClientMsgId, ServerFrame, UserId, frame, limits};
use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, Instant};

/// What may come between a question and its answer.
const ASIDE_MAX: usize = 65_536;

/// A session, its deadline, and the names it has learnt.
pub(crate) struct Talk {
    pub(crate) session: Session,
    pub(crate) deadline: Option<Instant>,
    pub(crate) json: bool,
    names: HashMap<UserId, String>,
    warned: bool,
    last_trouble: Option<String>,
}

/// Where and as whom, from the command line.
pub(crate) fn session_options(
    args: &ClientArgs,
    mode: Mode,
    purpose: &'static str,
) -> Result<SessionOptions, ClientError> {
    let address = Address::parse(&args.url).map_err(ClientError::Usage)?;
    let from_env = || std::env::var("PARLEY_TOKEN").ok().filter(|token| !token.is_empty());
    let token = args.token.clone().or_else(from_env);
    let who = match (&args.name, token) {
        (Some(name), _) => {
            if !address.is_loopback() {
                return Err(ClientError::Asked(format!(
                    "--as signs with the development key, which is taken on this machine only, not at {}; use --token",
                    address.text()
                )));
            }
            let key = DevKey::load(&args.data).map_err(|error| {
                ClientError::Asked(format!(
                    "no development key: {error}\nstart `parley up` here first, or name its data directory with --data"
                ))
            })?;
            Who::Name { key: Box::new(key), name: name.clone(), data: args.data.clone() }
        }
        (None, Some(token)) => Who::Token(token.trim().to_owned()),
        (None, None) => {
            return Err(ClientError::Usage("say who you are: --as NAME, or --token TOKEN (PARLEY_TOKEN)".to_owned()));
        }
    };
    let state_dir = match &args.state {
        Some(dir) => dir.clone(),
        None if mode == Mode::Quiet => std::path::PathBuf::new(),
        None => state_dir()?,
    };
    let encoding = if args.json_wire { Encoding::Json } else { Encoding::Rkyv };
    Ok(SessionOptions { address, who, encoding, mode, device_id: args.device, state_dir, purpose })
}

impl Talk {
    /// For one request.
    pub(crate) fn open(args: &ScriptArgs) -> Result<Self, ClientError> {
        let session = Session::new(session_options(&args.client, Mode::Quiet, "script")?)?;
        let deadline = Some(Instant::now() + Duration::from_millis(args.timeout_ms));
        let mut talk = Self::over(session, deadline, args.json);
        talk.connect()?;
        Ok(talk)
    }

    /// Over a session that somebody made.
    pub(crate) fn over(session: Session, deadline: Option<Instant>, json: bool) -> Self {
        Self { session, deadline, json, names: HashMap::new(), warned: false, last_trouble: None }
    }

    /// Waits for a session.
    pub(crate) fn connect(&mut self) -> Result<(), ClientError> {
        while self.session.me().is_none() {
            self.next("a session")?;
        }
        Ok(())
    }

    /// The next update; `TimedOut` at the deadline. Says once that the gateway is not there.
    pub(crate) fn next(&mut self, what: &str) -> Result<Update, ClientError> {
        let update = self.session.next(self.deadline)?;
        match &update {
            Update::Idle => {
                let trouble = self.last_trouble.as_ref().map_or(String::new(), |why| format!(" ({why})"));
                // A gateway without its storage listens and answers, but opens no session.
                let hint = match self.session.me() {
                    None if self.session.reached() => {
                        "\na gateway is there, but opens no session: its storage may be down; /readyz on its admin \
                         address says why"
                    }
                    _ => "",
                };
                return Err(ClientError::TimedOut(format!("no answer in time: waited for {what}{trouble}{hint}")));
            }
            Update::Disconnected { why, .. } => {
                self.last_trouble = Some(why.clone());
                if !std::mem::replace(&mut self.warned, true) {
                    let hint = if self.session.reached() { "" } else { " (is `parley up` running?)" };
                    eprintln!("parley: {why}; trying again{hint}");
                }
            }
            Update::NewHistory => {
                self.names.clear();
                eprintln!("parley: this server has a new history: beginning at its start");
            }
            Update::Connected(_) => {
                self.last_trouble = None;
                self.warned = false;
            }
            _ => {}
        }
        Ok(update)
    }

    /// Asks, and waits for the answer. Everything else that comes meanwhile stays for later.
    pub(crate) fn ask(&mut self, make: impl FnOnce(u32) -> ClientFrame) -> Result<ServerFrame, ClientError> {
        let id = self.session.request_id();
        self.session.submit(make(id))?;
        self.wait_for("an answer", |frame| match frame {
            ServerFrame::ChatList(list) => list.request_id == id,
            ServerFrame::HistoryPage(page) => page.request_id == id,
            ServerFrame::MemberPage(page) => page.request_id == id,
            ServerFrame::Users(users) => users.request_id == id,
            ServerFrame::Error(error) => error.request_id == Some(id),
            _ => false,
        })
    }

    /// Commands, and waits until it is durable.
    pub(crate) fn command(&mut self, name: ClientMsgId, frame: ClientFrame) -> Result<frame::Sent, ClientError> {
        self.session.submit(frame)?;
        let answer = self.wait_for("the message to be durable", |frame| match frame {
            ServerFrame::Sent(sent) => sent.client_msg_id == name,
            ServerFrame::Error(error) => error.client_msg_id == Some(name),
            _ => false,
        })?;
        match answer {
            ServerFrame::Sent(sent) => Ok(sent),
            _ => Err(unexpected()),
        }
    }

    /// Waits for a frame; a refusal that it matches is an error.
    pub(crate) fn wait_for(
        &mut self,
        what: &str,
        is_it: impl Fn(&ServerFrame) -> bool,
    ) -> Result<ServerFrame, ClientError> {
        let mut aside = Vec::new();
        let found = loop {
            match self.next(what) {
                Ok(Update::Frame(frame)) if is_it(&frame) => break Ok(*frame),
                Ok(_) if aside.len() >= ASIDE_MAX => break Err(ClientError::TimedOut(format!("no {what} so far"))),
                Ok(update) => aside.push(update),
                Err(error) => break Err(error),
            }
        };
        self.session.put_back(aside);
        match found? {
            ServerFrame::Error(error) => {
                if self.json {
                    print_frame(&ServerFrame::Error(error.clone()))?;
                }
                Err(ClientError::Refused(Box::new(error)))
            }
            frame => Ok(frame),
        }
    }

    /// Users by name; one that never logged in is an error that names it.
    pub(crate) fn users(&mut self, names: &[String]) -> Result<Vec<UserId>, ClientError> {
        let mut ids = Vec::with_capacity(names.len());
        for chunk in names.chunks(limits::RESOLVE_MAX) {
            let answer =
                self.ask(|request_id| ClientFrame::Resolve(frame::Resolve { request_id, names: chunk.to_vec() }))?;
            let ServerFrame::Users(users) = answer else { return Err(unexpected()) };
            for name in chunk {
                let found = users.users.iter().find(|user| user.name == *name);
                let user = found.ok_or_else(|| no_such_user(name))?;
                ids.push(user.user_id);
                self.names.insert(user.user_id, user.name.clone());
            }
        }
        Ok(ids)
    }

    /// A chat by the name of the other user, or by its id.
    pub(crate) fn chat(&mut self, name_or_id: &str) -> Result<ChatId, ClientError> {
        if let Some(chat_id) = name_or_id.parse::<ChatId>().ok().filter(|chat_id| chat_id.kind().is_some()) {
            return Ok(chat_id);
        }
        let user = self.users(&[name_or_id.to_owned()])?[0];
        self.connect()?;
        let me = self.session.me().unwrap_or(user);
        ChatId::direct(me, user)
            .ok_or_else(|| ClientError::Asked(format!("{name_or_id:?} is you: a chat needs somebody else")))
    }

    /// Learns the names of users.
    pub(crate) fn learn_names(&mut self, users: impl IntoIterator<Item = UserId>) -> Result<(), ClientError> {
        let mut unknown: Vec<UserId> = users.into_iter().filter(|user| !self.names.contains_key(user)).collect();
        unknown.sort_unstable();
        unknown.dedup();
        for chunk in unknown.chunks(limits::RESOLVE_MAX) {
            let answer =
                self.ask(|request_id| ClientFrame::Profiles(frame::Profiles { request_id, users: chunk.to_vec() }))?;
            let ServerFrame::Users(users) = answer else { return Err(unexpected()) };
            self.names.extend(users.users.into_iter().map(|user| (user.user_id, user.name)));
            for user in chunk {
                self.names.entry(*user).or_default();
            }
        }
        Ok(())
    }

    /// A learnt name; the id of a user without one.
    pub(crate) fn name(&self, user: UserId) -> String {
        match self.names.get(&user) {
            Some(name) if !name.is_empty() => super::show::plain(name),
            _ => format!("user {user}"),
        }
    }

    /// A group's title; empty where there is none or one may not know it.
    pub(crate) fn title(&mut self, chat_id: ChatId) -> Result<String, ClientError> {
        // The list of those after the id before it.
        let after = Some(ChatId(chat_id.0.saturating_sub(1)));
        match self.ask(|request_id| ClientFrame::Chats(frame::Chats { request_id, after, limit: 1 })) {
            Ok(ServerFrame::ChatList(list)) => {
                let chat = list.chats.into_iter().find(|chat| chat.chat_id == chat_id);
                Ok(chat.map_or_else(String::new, |chat| chat.title))
            }
            Ok(_) => Err(unexpected()),
            Err(ClientError::Refused(_)) => Ok(String::new()),
            Err(error) => Err(error),
        }
    }

    /// Every page of one's chats.
    pub(crate) fn all_chats(
        &mut self,
        mut page: impl FnMut(&frame::ChatList) -> Result<(), ClientError>,
    ) -> Result<Vec<frame::ChatSummary>, ClientError> {
        let mut chats: Vec<frame::ChatSummary> = Vec::new();
        loop {
            let after = chats.last().map(|chat| chat.chat_id);
            let answer = self.ask(|request_id| ClientFrame::Chats(frame::Chats { request_id, after, limit: 0 }))?;
            let ServerFrame::ChatList(list) = answer else { return Err(unexpected()) };
            page(&list)?;
            let more = list.more && !list.chats.is_empty();
            chats.extend(list.chats);
            if !more {
                return Ok(chats);
            }
        }
    }
}

/// The one of the command line, or a random one.
pub(crate) fn command_name(given: Option<ClientMsgId>) -> ClientMsgId {
    given.unwrap_or_else(|| ClientMsgId(random_u128()))
}

/// A named error: somebody has to log in once.
pub(crate) fn no_such_user(name: &str) -> ClientError {
    ClientError::Asked(format!("no user is called {name:?}: they have to log in once"))
}

/// An answer of the wrong kind.
pub(crate) fn unexpected() -> ClientError {
    ClientError::Asked("the server's answer does not fit the question".to_owned())
}

/// A frame as one line of JSON.
pub(crate) fn print_frame(frame: &ServerFrame) -> Result<(), ClientError> {
    print_line(&serde_json::to_string(frame).expect("frames have a JSON form"))
}

/// A line, at once.
pub(crate) fn print_line(line: &str) -> Result<(), ClientError> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|error| ClientError::Local(format!("cannot write to the standard output: {error}")))
}
