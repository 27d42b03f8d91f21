use super::*;

#[test]
fn an_error_is_one_pointer_wide() {
    assert_eq!(size_of::<Error>(), size_of::<usize>());
}

#[test]
fn codes_are_unique_kebab_case() {
    let mut seen = std::collections::HashSet::new();
    for code in Code::ALL {
        let name = code.as_str();
        assert!(seen.insert(name), "{name} twice");
        assert!(
            name.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        );
    }
}

#[test]
fn a_single_problem_stays_itself() {
    assert_eq!(Error::all(vec![Error::new(Code::Hole)]).code(), Code::Hole);
    let several = Error::all(vec![Error::new(Code::Hole), Error::new(Code::Overlap)]);
    assert_eq!(several.code(), Code::SeveralProblems);
    let codes: Vec<_> = several.problems().iter().map(Error::code).collect();
    assert_eq!(codes, [Code::Hole, Code::Overlap]);
}

#[test]
fn a_chain_of_causes_leads_to_the_error_of_the_system() {
    let refused = || io::Error::from(io::ErrorKind::PermissionDenied);
    let error: Box<dyn std::error::Error + Send + Sync> =
        Box::new(Error::io(Code::Io, refused()).at_path("a.safetensors"));
    // As `anyhow::Error::chain` walks it.
    let chain = std::iter::successors(Some(&*error as &dyn std::error::Error), |e| e.source());
    let found: Vec<_> = chain
        .filter_map(|e| e.downcast_ref::<io::Error>())
        .collect();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(error.to_string().matches(&refused().to_string()).count(), 1);

    let of_the_file = Error::new(Code::Hole);
    assert!(std::error::Error::source(&of_the_file).is_none());
}

#[test]
fn the_message_puts_the_place_first() {
    let error = Error::new(Code::SizeMismatch)
        .at_path("a.safetensors")
        .in_tensor("w")
        .at_offset(40)
        .expected("8 bytes")
        .found("4");
    assert_eq!(
        error.to_string(),
        "a.safetensors: tensor `w`, byte 40: shape and dtype do not fill data_offsets: \
         expected 8 bytes, found 4"
    );
}
