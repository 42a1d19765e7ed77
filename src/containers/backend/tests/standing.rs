//! How a container stands: left alone, tried again, asked how it is.

use super::*;

#[tokio::test]
async fn a_container_that_fails_is_left_alone_until_a_trial_succeeds() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let breaking = Breaking { failures: 3, first_pause: SOON, longest_pause: SOON };
    let backend =
        Backend::new(BackendConfig { breaking, ..config(BaseUrl::local(address.port())) });
    for _ in 0..3 {
        let error = ask(&backend).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
        assert_eq!(Failure::from(error).status(), Some(0));
    }
    assert_ne!(backend.state(), State::Closed);
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        loop {
            let mut peer = Peer(listener.accept().await.unwrap().0);
            peer.head().await;
            peer.say("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        }
    });
    let answered = loop {
        match ask(&backend).await {
            Ok((status, ..)) => break status,
            Err(Error::LeftAlone { after, .. }) => tokio::time::sleep(after).await,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(answered, StatusCode::OK);
    assert_eq!(backend.state(), State::Closed);
}

#[tokio::test]
async fn health_checks_say_how_it_is_and_slow_answers_say_nothing() {
    let (url, _) = container(|mut peer| async move {
        loop {
            match peer.head().await {
                head if head.starts_with("GET /ping ") => {
                    peer.say("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
                head if head.is_empty() => return,
                _ => {}
            }
        }
    })
    .await;
    let health = HealthConfig { interval: SOON / 50, timeout: PATIENCE, ..HealthConfig::default() };
    let breaking = Breaking { failures: 1, ..Breaking::default() };
    let config = BackendConfig { head_timeout: SOON, breaking, ..config(url) };
    let backend = Backend::new(BackendConfig { health: Some(health), ..config });
    while backend.is_healthy().is_none() {
        tokio::time::sleep(SOON / 50).await;
    }
    assert_eq!(backend.is_healthy(), Some(true));
    let error = ask(&backend).await.unwrap_err();
    assert!(matches!(error, Error::Silent { .. }), "{error}");
    assert_eq!(backend.state(), State::Closed);
}

#[tokio::test]
async fn a_request_that_breaks_its_connection_has_the_container_asked_and_closes_it_to_nobody() {
    let checks = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&checks);
    let (url, _) = container(move |mut peer| {
        let checks = Arc::clone(&counted);
        async move {
            match peer.head().await {
                head if head.starts_with("GET /ping ") => {
                    checks.fetch_add(1, Ordering::SeqCst);
                    peer.say("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                        .await;
                }
                head if head.starts_with("POST /cut ") => {
                    peer.say("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx").await;
                    peer.reset();
                }
                _ => peer.reset(),
            }
        }
    })
    .await;
    let interval = PATIENCE * 60;
    let health = HealthConfig { interval, timeout: PATIENCE, ..HealthConfig::default() };
    let breaking = Breaking { failures: 1, ..Breaking::default() };
    let checked = BackendConfig { breaking, health: Some(health), ..config(url.clone()) };
    let backend = Backend::new(checked);
    for (path, so_far) in [("/invocations", 1), ("/cut", 2)] {
        while checks.load(Ordering::SeqCst) < so_far {
            tokio::time::sleep(SOON / 50).await;
        }
        let mut request = post("question");
        *request.uri_mut() = path.parse().unwrap();
        let error = match backend.send(request, Instant::now() + PATIENCE).await {
            Ok(answer) => answer.into_body().collect(LIMIT).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(error, Error::BrokeOff { .. } | Error::Cut { .. }), "{error}");
    }
    while checks.load(Ordering::SeqCst) < 3 {
        tokio::time::sleep(SOON / 50).await;
    }
    assert_eq!(backend.state(), State::Closed);
    // Where nobody else says how it is, this does, unless its end is seen.
    for (is_watched, state) in [(false, State::Open), (true, State::Closed)] {
        let config = config(url.clone());
        let backend = Backend::new(BackendConfig { breaking, is_watched, ..config });
        ask(&backend).await.unwrap_err();
        assert_eq!(backend.state(), state);
    }
}

#[tokio::test]
async fn an_instruction_takes_no_place_and_goes_to_what_is_left_alone() {
    let (url, _) = container(|mut peer| async move {
        match peer.head().await {
            head if head.starts_with("POST /load ") => {
                peer.say("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
            }
            _ => peer.reset(),
        }
    })
    .await;
    let breaking = Breaking { failures: 1, first_pause: PATIENCE, longest_pause: PATIENCE };
    let backend = Backend::new(BackendConfig { breaking, max_in_flight: 1, ..config(url) });
    ask(&backend).await.unwrap_err();
    assert_eq!(backend.state(), State::Open);
    let _place = backend.0.place().unwrap();
    let request = Request::post("/load").body(Outgoing::empty()).unwrap();
    let answer = backend.instruct(request, Instant::now() + PATIENCE).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!((backend.state(), backend.in_flight()), (State::Open, 1));
}

#[tokio::test]
async fn a_container_that_says_it_is_not_well_is_left_alone() {
    let (url, _) = container(|mut peer| async move {
        peer.head().await;
        peer.say("HTTP/1.1 503 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    })
    .await;
    let health = HealthConfig { interval: SOON / 50, ..HealthConfig::default() };
    let backend = Backend::new(BackendConfig { health: Some(health), ..config(url) });
    while backend.state() == State::Closed {
        tokio::time::sleep(SOON / 50).await;
    }
    assert_eq!(backend.is_healthy(), Some(false));
}
