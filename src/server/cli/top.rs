//! `roundhouse top`: the live page for terminals.
//!
//! Reading order: this file (the loop), `feed` (what the server tells), `page` (how it is
//! written), `lines` (in lines that fit), `screen` (the terminal).

mod feed;
mod lines;
mod page;
mod screen;
mod width;

use std::pin::pin;
use std::time::Duration;

use clap::Args;
use reqwest::Method;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use self::feed::{Feed, Frames};
use self::page::{Page, Room};
use self::screen::{Input, Screen};
use super::client::Client;
use super::{AdminArgs, output};
use crate::error::Error;

/// The server has a pulse of a second; after so many of silence it is taken for gone.
const SILENCE: Duration = Duration::from_secs(15);
/// Before it is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Arguments of `top`.
#[derive(Debug, Clone, Args)]
pub struct TopArgs {
    /// Print one page and end.
    #[arg(long)]
    pub once: bool,
    /// Seconds between two pages.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub every: u64,
    /// Which server.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Shows the server's state until it is interrupted: in place on a terminal, page after page
/// elsewhere. With `--json` each page is one line of JSON.
pub(super) async fn run(args: &TopArgs) -> Result<(), Error> {
    let client = Client::admin(&args.admin)?;
    if args.once {
        return once(&client, args).await;
    }
    let mut screen = match args.admin.json {
        true => None,
        false => Screen::open()?,
    };
    let mut input = Input::listen(screen.is_some())?;
    tokio::select! {
        ended = forever(&client, args, &mut screen) => ended,
        () = input.quit() => Ok(()),
    }
}

/// One page, decisions until now included.
async fn once(client: &Client, args: &TopArgs) -> Result<(), Error> {
    let mut feed = Feed::default();
    let mut frames = connect(client, &feed).await?;
    // What was decided before comes behind the state, before the first pulse.
    while !feed.is_settled() {
        let Some(frame) = hear(client, &mut frames).await? else {
            return Err(client.silent("the stream ended before the state was whole"));
        };
        feed.take(frame).map_err(|source| client.unreadable(source))?;
    }
    show(args, &feed, &mut None)
}

/// Reads, shows, and connects again when the server has gone, until something cannot be mended.
async fn forever(
    client: &Client,
    args: &TopArgs,
    screen: &mut Option<Screen>,
) -> Result<(), Error> {
    let mut feed = Feed::default();
    loop {
        let ended = follow(client, args, &mut feed, screen).await;
        match ended {
            Err(
                error @ (Error::OutputClosed
                | Error::Refused { status: 400..500, .. }
                | Error::Usage(_)),
            ) => {
                return Err(error);
            }
            // Without a server there is nothing to show yet.
            Err(error) if feed.is_empty() => return Err(error),
            Err(error) => feed.lost(&error.to_string()),
            Ok(()) => feed.lost("the stream has ended"),
        }
        show(args, &feed, screen)?;
        sleep(AGAIN).await;
    }
}

async fn follow(
    client: &Client,
    args: &TopArgs,
    feed: &mut Feed,
    screen: &mut Option<Screen>,
) -> Result<(), Error> {
    let mut frames = connect(client, feed).await?;
    let mut pages = interval(Duration::from_secs(args.every));
    pages.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first is shown as soon as there is something.
    let mut is_due = false;
    loop {
        // What was begun to be heard is heard to its end, whatever pages come between.
        let mut heard = pin!(hear(client, &mut frames));
        let frame = loop {
            // A terminal need not wait for what was decided before.
            let is_worth = feed.is_settled() || (screen.is_some() && !feed.is_empty());
            if is_due && is_worth {
                is_due = false;
                show(args, feed, screen)?;
            }
            tokio::select! {
                frame = &mut heard => break frame?,
                _ = pages.tick() => is_due = true,
            }
        };
        let Some(frame) = frame else { return Ok(()) };
        feed.take(frame).map_err(|source| client.unreadable(source))?;
    }
}

async fn connect(client: &Client, feed: &Feed) -> Result<Frames, Error> {
    let mut request = client.request(Method::GET, "/admin/v1/live");
    if let Some(seen) = feed.seen() {
        request = request.header("last-event-id", seen);
    }
    let answer = timeout(SILENCE, client.send(request)).await;
    Ok(Frames::new(answer.map_err(|_| client.silent("no answer"))??))
}

async fn hear(client: &Client, frames: &mut Frames) -> Result<Option<feed::Frame>, Error> {
    let heard = timeout(SILENCE, frames.next()).await;
    heard.map_err(|_| client.silent("nothing was heard"))?.map_err(|source| client.broken(source))
}

fn show(args: &TopArgs, feed: &Feed, screen: &mut Option<Screen>) -> Result<(), Error> {
    if args.admin.json {
        let page = json!({
            "state": feed.state(), "sample": feed.samples().last(),
            "decisions": feed.decisions(), "lost": feed.why_lost(),
        });
        return match args.once {
            true => output::print_json(&page),
            false => output::print(&format!("{}\n", output::plain_json(&page.to_string()))),
        };
    }
    match screen {
        Some(screen) => {
            let page = Page::new(feed, &args.admin.url, screen.room());
            screen.show(&page.render())
        }
        None => output::print(&Page::new(feed, &args.admin.url, Room::PAPER).render()),
    }
}
