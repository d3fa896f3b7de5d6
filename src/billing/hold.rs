//! The most that a request can cost, as far as it is known before it is sent.

use super::Credits;
use super::price::{Price, Rate, Rates};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// Tokens of input, of all classes.
    pub input: u64,
    /// The largest output of all choices together, in tokens.
    pub output: u64,
    /// The service tier that is asked for. The upstream may serve the standard one instead.
    pub tier: Option<&'a str>,
    /// Tools that the upstream bills by the call; each is taken to be called once.
    pub tools: &'a [String],
    /// Input may be written to a cache for an hour.
    pub cache_1h: bool,
    /// Input or output may be audio or images.
    pub media: bool,
}

/// The most that a request can cost, if one of these prices holds for it.
///
/// Input is taken at the dearest of the rates that a token of it can have, in the dearest band
/// that so much input can reach, output likewise; the dearest tier and price count. What a
/// request uses within what it asked for is never charged more, but for more calls of tools
/// than one each. Never above the largest charge that there is.
pub fn most<'a>(asked: &Asked<'_>, prices: impl IntoIterator<Item = &'a Price>) -> Credits {
    let most = |price: &Price| if price.free { 0 } else { most_by(asked, price) };
    let pico = prices.into_iter().map(most).max().unwrap_or_default();
    Credits::from_pico(pico).map_or(Credits::ENTRY_LIMIT, |most| most.min(Credits::ENTRY_LIMIT))
}

/// In pico-credits.
fn most_by(asked: &Asked<'_>, price: &Price) -> i128 {
    let tiers = [Some(&price.standard), asked.tier.and_then(|tier| price.tiers.get(tier))];
    let reachable = |tier: &'_ super::price::Tier| {
        let bands = tier.bands.iter().filter(|band| asked.input > band.above);
        let rates = bands.map(|band| &band.rates).chain([&tier.rates]);
        rates.map(|rates| of_tokens(asked, rates)).max().unwrap_or_default()
    };
    let tokens = tiers.into_iter().flatten().map(reachable).max().unwrap_or_default();
    let fee = |tool: &String| price.fees.get(tool).map_or(0, |fee| i128::from(fee.nano()) * 1000);
    tokens + asked.tools.iter().map(fee).sum::<i128>()
}

fn of_tokens(asked: &Asked<'_>, rates: &Rates) -> i128 {
    let if_hour = |rate: Option<Rate>| rate.filter(|_| asked.cache_1h);
    let if_media = |rate: Option<Rate>| rate.filter(|_| asked.media);
    let input = [
        Some(rates.input),
        rates.cached_input,
        rates.cache_creation,
        if_hour(rates.cache_creation_1h),
        if_media(rates.audio_input),
        if_media(rates.cached_audio_input),
        if_media(rates.image_input),
    ];
    let output = [
        Some(rates.output),
        rates.reasoning,
        if_media(rates.audio_output),
        if_media(rates.image_output),
    ];
    let dearest =
        |rates: &[Option<Rate>]| rates.iter().flatten().copied().max().unwrap_or_default();
    dearest(&input).times(asked.input) + dearest(&output).times(asked.output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::Usage;
    use crate::billing::price::table::rate;
    use crate::billing::price::{Band, Tier, charge};
    use proptest::prelude::*;

    const NOTHING: Asked<'_> =
        Asked { input: 0, output: 0, tier: None, tools: &[], cache_1h: false, media: false };

    fn sonnet() -> Price {
        let per_million = |text| rate(text).unwrap();
        let rates = Rates {
            input: per_million("3.3"),
            output: per_million("16.5"),
            cached_input: Some(per_million("0.33")),
            cache_creation: Some(per_million("4.125")),
            cache_creation_1h: Some(per_million("6.6")),
            ..Rates::default()
        };
        let dear = Rates {
            input: per_million("6.6"),
            output: per_million("24.75"),
            cache_creation: Some(per_million("8.25")),
            ..rates.clone()
        };
        let bands = vec![Band { above: 200_000, rates: dear }];
        Price { standard: Tier { rates, bands }, ..Price::default() }
    }

    fn most_of(asked: &Asked<'_>, price: &Price) -> String {
        most(asked, [price]).to_string()
    }

    #[test]
    fn input_is_held_at_its_dearest_rate_and_output_at_its_own() {
        let asked = Asked { input: 10_000, output: 1_000, ..NOTHING };
        assert_eq!(most_of(&asked, &sonnet()), "0.05775");
        let hour = Asked { cache_1h: true, ..asked };
        assert_eq!(most_of(&hour, &sonnet()), "0.0825");
        assert_eq!(most_of(&asked, &Price { free: true, ..sonnet() }), "0");
    }

    #[test]
    fn a_band_counts_once_the_input_can_reach_it() {
        let asked = |input| Asked { input, output: 1_000, ..NOTHING };
        assert_eq!(most_of(&asked(200_000), &sonnet()), "0.8415");
        assert_eq!(most_of(&asked(200_001), &sonnet()), "1.67475825");
    }

    #[test]
    fn a_tier_counts_if_it_is_asked_for_and_never_less_than_the_standard_one() {
        let mut price = sonnet();
        let twice = Rates {
            input: rate("6.6").unwrap(),
            cache_creation: None,
            ..price.standard.rates.clone()
        };
        let half = Rates { input: rate("1").unwrap(), cache_creation: None, ..twice.clone() };
        for (name, rates) in [("priority", twice), ("flex", half)] {
            price.tiers.insert(name.into(), Tier { rates, bands: vec![] });
        }
        let asked = |tier| Asked { input: 1_000_000, tier, ..NOTHING };
        let small = |tier| Asked { input: 100_000, ..asked(tier) };
        assert_eq!(most_of(&small(None), &price), "0.4125");
        assert_eq!(most_of(&small(Some("priority")), &price), "0.66");
        assert_eq!(most_of(&small(Some("flex")), &price), "0.4125");
    }

    #[test]
    fn declared_tools_and_the_dearest_of_several_models_count() {
        let mut dear = sonnet();
        dear.fees.insert("web_search".into(), "0.01".parse().unwrap());
        let tools = ["mcp".to_owned(), "web_search".to_owned()];
        let asked = Asked { output: 1_000, tools: &tools, ..NOTHING };
        assert_eq!(most(&asked, [&sonnet(), &dear, &sonnet()]).to_string(), "0.0265");
        assert_eq!(most(&asked, []).to_string(), "0");
    }

    #[test]
    fn media_count_at_their_own_rates_only_where_they_may_be() {
        let mut price = sonnet();
        price.standard.rates.audio_input = rate("40");
        price.standard.rates.audio_output = rate("80");
        let asked = Asked { input: 1_000, output: 1_000, ..NOTHING };
        assert_eq!(most_of(&asked, &price), "0.020625");
        assert_eq!(most_of(&Asked { media: true, ..asked }, &price), "0.12");
    }

    #[test]
    fn what_is_beyond_belief_is_the_largest_charge() {
        let asked = Asked { input: u64::MAX, output: u64::MAX, ..NOTHING };
        assert_eq!(most(&asked, [&sonnet()]), Credits::ENTRY_LIMIT);
    }

    fn any_rate() -> impl Strategy<Value = Rate> {
        (0_i64..100_000_000).prop_map(Rate)
    }

    fn any_rates() -> impl Strategy<Value = Rates> {
        let own = || proptest::option::of(any_rate());
        let classes = (any_rate(), any_rate(), own(), own(), own(), own());
        let media = (own(), own(), own(), own(), own());
        (classes, media).prop_map(|(classes, media)| {
            let (input, output, cached_input, cache_creation, cache_creation_1h, reasoning) =
                classes;
            let (audio_input, cached_audio_input, audio_output, image_input, image_output) = media;
            Rates {
                input,
                output,
                cached_input,
                cache_creation,
                cache_creation_1h,
                reasoning,
                audio_input,
                cached_audio_input,
                audio_output,
                image_input,
                image_output,
            }
        })
    }

    fn any_tier() -> impl Strategy<Value = Tier> {
        let band = (0_u64..4_000, any_rates()).prop_map(|(above, rates)| Band { above, rates });
        (any_rates(), proptest::collection::vec(band, 0..3)).prop_map(|(rates, mut bands)| {
            bands.sort_by_key(|band| band.above);
            Tier { rates, bands }
        })
    }

    fn any_price() -> impl Strategy<Value = Price> {
        (any_tier(), any_tier(), 0_i64..1_000_000_000).prop_map(|(standard, priority, fee)| Price {
            standard,
            tiers: [("priority".to_owned(), priority)].into(),
            fees: [("web_search".to_owned(), Credits::from_nano(fee))].into(),
            free: false,
        })
    }

    proptest! {
        /// Whatever a request uses within what it asked for, the charge is not above the hold.
        #[test]
        fn no_usage_within_what_was_asked_costs_more_than_is_held(
            price in any_price(),
            input in proptest::array::uniform4(0_u64..2_000),
            parts in proptest::array::uniform6(0_u64..2_000),
            output in 0_u64..5_000,
            calls in 0_u64..2,
            unused in (0_u64..1_000, 0_u64..1_000),
            tier in proptest::option::of(Just("priority")),
            given in proptest::bool::ANY,
            (cache_1h, media) in (proptest::bool::ANY, proptest::bool::ANY),
        ) {
            let part = |at: usize| if media { parts[at] } else { 0 };
            let usage = Usage {
                input: input[0],
                cached: input[1],
                cache_creation_5m: input[2],
                cache_creation_1h: if cache_1h { input[3] } else { 0 },
                output,
                reasoning: parts[5],
                input_audio: part(0),
                input_image: part(1),
                cached_audio: part(2),
                output_audio: part(3),
                output_image: part(4),
                calls: [("web_search", calls)].into(),
            };
            let tools = ["web_search".to_owned()];
            let asked = Asked {
                input: usage.all_input() + unused.0,
                output: output + unused.1,
                tier,
                tools: &tools,
                cache_1h,
                media,
            };
            let given = tier.filter(|_| given);
            prop_assert!(charge(&usage, &price, given).unwrap() <= most(&asked, [&price]));
        }
    }
}
