//! What a store promises, checked against a store that holds known objects.

use futures_util::TryStreamExt;

use crate::{ArtifactStore, Error, ListRequest};

/// The objects that a store must hold, and no others, when the suite runs on it.
pub fn contract_objects() -> Vec<(String, Vec<u8>)> {
    let large: Vec<u8> =
        (0..3_000_000_u32).flat_map(|n| n.to_le_bytes().into_iter().take(1)).collect();
    let mut objects = vec![
        ("a-b/c".to_owned(), b"sorts before a/".to_vec()),
        ("a/b c+d.txt".to_owned(), b"blank and plus".to_vec()),
        ("a/deep/er/x".to_owned(), b"deep".to_vec()),
        ("a/large".to_owned(), large),
        ("a/empty".to_owned(), Vec::new()),
        ("a0".to_owned(), b"sorts behind a/".to_vec()),
    ];
    objects.extend((0..25).map(|n| (format!("many/{n:02}"), vec![n])));
    objects
}

/// Runs the suite.
///
/// # Panics
/// With a text that names the promise that the store breaks.
pub async fn contract(store: &dyn ArtifactStore) {
    listings_are_complete_ordered_and_paged(store).await;
    heads_agree_with_listings(store).await;
    reads_yield_exactly_the_range(store).await;
    what_is_not_there_is_not_found(store).await;
    other_versions_are_refused_or_say_so(store).await;
}

async fn listed(store: &dyn ArtifactStore, prefix: &str, limit: usize) -> Vec<String> {
    let mut request = ListRequest { prefix: prefix.into(), token: None, limit };
    let mut keys = Vec::new();
    loop {
        let page = store.list(&request).await.expect("a listing");
        assert!(page.objects.len() <= limit, "a page is no larger than asked for");
        keys.extend(page.objects.into_iter().map(|object| object.key));
        assert!(keys.len() <= 1000, "a listing ends");
        match page.next {
            None => return keys,
            token => request.token = token,
        }
    }
}

async fn listings_are_complete_ordered_and_paged(store: &dyn ArtifactStore) {
    let mut all: Vec<_> = contract_objects().into_iter().map(|(key, _)| key).collect();
    all.sort_unstable();
    for limit in [1000, 10, 1] {
        assert_eq!(listed(store, "", limit).await, all, "pages of {limit}");
        for prefix in ["a/", "a/deep/", "many/"] {
            let below: Vec<_> = all.iter().filter(|key| key.starts_with(prefix)).cloned().collect();
            assert_eq!(listed(store, prefix, limit).await, below, "below {prefix}");
        }
    }
    assert!(listed(store, "nothing/", 10).await.is_empty());
}

async fn heads_agree_with_listings(store: &dyn ArtifactStore) {
    let request = ListRequest { prefix: "a/".into(), token: None, limit: 1000 };
    let page = store.list(&request).await.expect("a listing");
    for listed in page.objects {
        let head = store.head(&listed.key).await.expect("a head");
        assert_eq!((&head.etag, head.size), (&listed.etag, listed.size), "{}", listed.key);
        assert!(head.modified.is_some() && listed.modified.is_some(), "objects have dates");
        let age = store.now().duration_since(listed.modified.expect("checked above"));
        assert!(age.unwrap_or_default().as_secs() < 3600, "the dates are of the store's clock");
    }
}

async fn reads_yield_exactly_the_range(store: &dyn ArtifactStore) {
    for (key, contents) in contract_objects() {
        let size = contents.len() as u64;
        let etag = store.head(&key).await.expect("a head").etag;
        for range in [0..size, 0..1, size / 2..size, size.saturating_sub(1)..size, 7..9] {
            if range.is_empty() || range.end > size {
                continue;
            }
            let read = store.get(&key, &etag, range.clone()).await.expect("a read");
            assert_eq!(read.etag, etag, "{key}");
            let chunks: Vec<_> = read.stream.try_collect().await.expect("the bytes");
            let wanted = usize::try_from(range.start).expect("small")
                ..usize::try_from(range.end).expect("small");
            assert!(chunks.concat() == contents[wanted], "{key} {range:?}");
        }
    }
}

async fn what_is_not_there_is_not_found(store: &dyn ArtifactStore) {
    for key in ["nothing", "a", "a/deep", "a0/x"] {
        let head = store.head(key).await;
        assert!(matches!(head, Err(Error::ObjectNotFound { .. })), "{key}: {head:?}");
    }
    let read = store.get("nothing", "x", 0..1).await.err();
    assert!(matches!(read, Some(Error::ObjectNotFound { .. })), "{read:?}");
}

async fn other_versions_are_refused_or_say_so(store: &dyn ArtifactStore) {
    let other = "0123456789abcdef0123456789abcdef";
    match store.get("a/large", other, 0..10).await {
        Err(Error::Changed { .. }) => {}
        Err(error) => panic!("a read of another version is {error}"),
        Ok(read) => assert_ne!(read.etag, other, "the tag is of what is read"),
    }
}
