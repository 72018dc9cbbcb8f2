//! `parley group`: creates groups and channels, and changes them.

use super::show;
use super::talk::{Talk, command_name, print_frame, print_line, unexpected};
use crate::cli::{GroupArgs, GroupCommand, GroupTarget, ScriptArgs};
use crate::client::ClientError;
use parley_protocol::frame::{self, Change, ChannelCreate, GroupChange, GroupCreate, Member, Sent};
use parley_protocol::{ChatId, ClientFrame, ClientMsgId, Posting, ServerFrame};

pub(super) fn run(args: &GroupArgs) -> Result<(), ClientError> {
    match &args.command {
        GroupCommand::Create { script, title, members, client_msg_id } => {
            create(script, title, members, *client_msg_id)
        }
        GroupCommand::Add { target, members } => change(target, |talk| Ok(Change::Add { users: talk.users(members)? })),
        GroupCommand::Remove { target, members } => {
            change(target, |talk| Ok(Change::Remove { users: talk.users(members)? }))
        }
        GroupCommand::Role { target, member, role } => change(target, |talk| {
            let user = talk.users(std::slice::from_ref(member))?[0];
            Ok(Change::Role { user, role: (*role).into() })
        }),
        GroupCommand::Rename { target, title } => change(target, |_| Ok(Change::Rename { title: title.clone() })),
        GroupCommand::CreateChannel { script, title, everybody, client_msg_id } => {
            create_channel(script, title, *everybody, *client_msg_id)
        }
        GroupCommand::Join { target } => change(target, |_| Ok(Change::Join {})),
        GroupCommand::Leave { target } => change(target, |_| Ok(Change::Leave {})),
        GroupCommand::Members { script, group } => members(script, *group),
    }
}

fn create(
    script: &ScriptArgs,
    title: &str,
    members: &[String],
    client_msg_id: Option<ClientMsgId>,
) -> Result<(), ClientError> {
    let mut talk = Talk::open(script)?;
    let members = if members.is_empty() { Vec::new() } else { talk.users(members)? };
    let client_msg_id = command_name(client_msg_id);
    let create = GroupCreate { client_msg_id, title: title.to_owned(), members };
    made(script, talk, client_msg_id, ClientFrame::GroupCreate(create))
}

fn create_channel(
    script: &ScriptArgs,
    title: &str,
    everybody: bool,
    client_msg_id: Option<ClientMsgId>,
) -> Result<(), ClientError> {
    let talk = Talk::open(script)?;
    let client_msg_id = command_name(client_msg_id);
    let posting = if everybody { Posting::Everybody } else { Posting::Admins };
    let create = ChannelCreate { client_msg_id, title: title.to_owned(), posting };
    made(script, talk, client_msg_id, ClientFrame::ChannelCreate(create))
}

/// Sends a creation and prints the id of what it made.
fn made(
    script: &ScriptArgs,
    mut talk: Talk,
    client_msg_id: ClientMsgId,
    frame: ClientFrame,
) -> Result<(), ClientError> {
    let sent = talk.command(client_msg_id, frame)?;
    talk.session.close()?;
    if script.json {
        return print_frame(&ServerFrame::Sent(sent));
    }
    print_line(&sent.chat_id.to_string())
}

fn change(
    target: &GroupTarget,
    make: impl FnOnce(&mut Talk) -> Result<Change, ClientError>,
) -> Result<(), ClientError> {
    let mut talk = Talk::open(&target.script)?;
    let chat_id = target.group;
    let change = make(&mut talk)?;
    let client_msg_id = command_name(target.client_msg_id);
    let frame = ClientFrame::GroupChange(GroupChange { chat_id, client_msg_id, change });
    let sent: Sent = talk.command(client_msg_id, frame)?;
    talk.session.close()?;
    if target.script.json {
        return print_frame(&ServerFrame::Sent(sent));
    }
    print_line(&format!("done: chat {} seq {}", sent.chat_id, sent.seq))
}

fn members(script: &ScriptArgs, chat_id: ChatId) -> Result<(), ClientError> {
    let mut talk = Talk::open(script)?;
    let mut members: Vec<Member> = Vec::new();
    loop {
        let after = members.last().map(|member| member.user_id);
        let ask = |request_id| ClientFrame::Members(frame::Members { request_id, chat_id, after, limit: 0 });
        let ServerFrame::MemberPage(page) = talk.ask(ask)? else { return Err(unexpected()) };
        if script.json {
            print_frame(&ServerFrame::MemberPage(page.clone()))?;
        }
        let more = page.more && !page.members.is_empty();
        members.extend(page.members);
        if !more {
            break;
        }
    }
    if !script.json {
        talk.learn_names(members.iter().map(|member| member.user_id))?;
        for member in &members {
            let (name, role) = (talk.name(member.user_id), show::role(member.role));
            let (delivered, read) = (member.delivered_seq, member.read_seq);
            print_line(&format!("{}  {name:<20}  {role:<6}  delivered {delivered}, read {read}", member.user_id))?;
        }
    }
    talk.session.close()
}
